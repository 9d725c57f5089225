"""What one encoder makes of data sets: each set's images encoded once, each list of classes once, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipkit import distributed
from clipkit.encoder import Encoder
from clipkit.evaluation.feature_cache import cached, features_key
from clipkit.evaluation.prompts import fill
from clipkit.evaluation.samples import ImageFile
from clipkit.evaluation.split import encode_images, gather_by_index, my_share

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name to the type of autocast; None for none."""
TEXTS = 256  # of one forward
_TEXTS_AT_ONCE = 4096  # between two polls; within them texts of like length share a forward


class Encodings:
    """Embeddings by an encoder, computed on first use and shared between evaluators.

    The images and texts of the last set are kept, so that several evaluators of one set encode it once; class
    embeddings are kept for good, so that sets with equal names and templates share them.

    Args:
        encoder: The encoder, the same on every rank.
        batch_size: Images of one forward on one rank.
        workers: Processes a rank that read and decode images.
        precision: One of ``PRECISIONS``: what the towers compute in (autocast); embeddings are float32.
        on_images: Told of images that this rank has encoded.
        feature_cache: A folder where the features that probes learn from are kept; None keeps none.
        poll: Called between batches, on every rank equally often; it may raise on all of them to give up.

    Raises:
        ValueError: If there is no such precision.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        batch_size: int = 64,
        workers: int = 0,
        precision: str = "fp32",
        on_images: Callable[[int], None] = lambda count: None,
        feature_cache: Path | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is not known; take one of {', '.join(PRECISIONS)}")
        self.encoder = encoder
        self.precision = precision
        self.on_images = on_images
        self.batch_size = batch_size
        self.workers = workers
        self.feature_cache = feature_cache
        self.poll = poll
        self._features: dict[tuple[tuple[ImageFile, ...], tuple[str, ...]], dict[str, Tensor]] = {}
        self._images: tuple[tuple[ImageFile, ...], Tensor] | None = None
        self._texts: tuple[tuple[str, ...], Tensor] | None = None
        self._classes: dict[tuple[tuple[str, ...], ...], Tensor] = {}

    def images(self, images: Sequence[ImageFile]) -> Tensor:
        """Embeddings of images.

        Args:
            images: Where the images lie (N).

        Returns:
            (N, D) float32, unit norm, on the CPU, the same on every rank.

        Raises:
            ValueError: If an image cannot be read or its embedding is not finite, on every rank, with its name.
        """
        key = tuple(images)
        if self._images is None or self._images[0] != key:
            with self._arithmetic():
                found = encode_images(
                    self.encoder,
                    images,
                    batch_size=self.batch_size,
                    workers=self.workers,
                    on_images=self.on_images,
                    poll=self.poll,
                )
            self._require_finite(found, images)
            self._images = key, found
        return self._images[1]

    def features(self, images: Sequence[ImageFile], kinds: Sequence[str]) -> dict[str, Tensor]:
        """Image features that a probe learns from; those of the last two sets are kept, one to learn from and one to score.

        Args:
            images: Where the images lie (N).
            kinds: ``embedding``, or also ``pooled``: the tower's output before the projection.

        Returns:
            By kind (N, H) or (N, D) float32, on the CPU, the same on every rank; embeddings have unit norm, pooled
            features are as the tower gives them.

        Raises:
            ValueError: If an image cannot be read, or it is not known where the model projects.
        """
        key = tuple(images), tuple(sorted(kinds))
        if key not in self._features:
            if self.feature_cache is None:
                made = self._make_features(images, kinds)
            else:
                name = features_key(self.encoder, images, kinds, self.precision)
                made = cached(self.feature_cache, name, lambda: self._make_features(images, kinds))
            if len(self._features) == 2:
                del self._features[next(iter(self._features))]
            self._features[key] = made
        return self._features[key]

    def _make_features(self, images: Sequence[ImageFile], kinds: Sequence[str]) -> dict[str, Tensor]:
        if "pooled" not in kinds:
            return {"embedding": self.images(images)}
        with self._arithmetic():
            both = encode_images(
                self.encoder,
                images,
                batch_size=self.batch_size,
                workers=self.workers,
                on_images=self.on_images,
                encode=self.encoder.encode_image_features,
                poll=self.poll,
            )
        self._require_finite(both, images)
        width = int(self.encoder.info.config["embed_dim"])
        return {"pooled": both[:, :-width].contiguous(), "embedding": both[:, -width:].contiguous()}

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts.

        Args:
            texts: The texts (M).

        Returns:
            (M, D) float32, unit norm, on the CPU, the same on every rank.
        """
        key = tuple(texts)
        if self._texts is None or self._texts[0] != key:
            mine = my_share(len(texts))
            with self._arithmetic():
                rows = _encode_texts(self.encoder, [texts[item] for item in mine], len(texts), self.poll)
            found = gather_by_index(rows, mine, len(texts), self.encoder.device)
            self._require_finite(found, texts)
            self._texts = key, found
        return self._texts[1]

    def classes(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """One embedding a class: the mean over prompts of unit-norm text embeddings, at unit norm again.

        Args:
            classnames: Names of the classes (C).
            templates: Prompts with ``{c}`` (T).

        Returns:
            (C, D) float32, unit norm, on the CPU, the same on every rank.
        """
        return self.prompts([[fill(template, name) for template in templates] for name in classnames])

    def prompts(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """One embedding a class, of prompts of its own: their mean as in ``classes``, however many each class has.

        Args:
            prompts: For each class its prompts (C), one at least.

        Returns:
            (C, D) float32, unit norm, on the CPU, the same on every rank.
        """
        key = tuple(map(tuple, prompts))
        if key not in self._classes:
            with self._arithmetic():
                found = _class_embeddings(self.encoder, key, self.poll)
            self._require_finite(found, [texts[0] for texts in key])
            self._classes[key] = found
        return self._classes[key]

    def _arithmetic(self) -> torch.autocast:
        dtype = PRECISIONS[self.precision] or torch.bfloat16
        return torch.autocast(self.encoder.device.type, dtype, enabled=PRECISIONS[self.precision] is not None)

    def _require_finite(self, rows: Tensor, items: Sequence[object]) -> None:
        bad = (~torch.isfinite(rows)).any(1).nonzero().squeeze(1).tolist()
        if bad:
            cure = "evaluate with precision fp32" if self.precision == "fp16" else "the weights are broken"
            first = items[bad[0]]
            raise ValueError(
                f"{len(bad)} of {len(rows)} embeddings hold NaN or infinity, the first is of {first!s}: {cure}"
            )


def _encode_texts(encoder: Encoder, mine: Sequence[str], total: int, poll: Callable[[], None]) -> Tensor:
    """This rank's texts; every rank polls equally often, though one may have a text more."""
    common = -(-(total // distributed.world_size()) // _TEXTS_AT_ONCE)
    parts = [encoder.encode_text([])]
    for number, start in enumerate(range(0, len(mine), _TEXTS_AT_ONCE)):
        if number < common:
            poll()
        parts.append(encoder.encode_text(mine[start : start + _TEXTS_AT_ONCE], batch_size=TEXTS))
    return torch.cat(parts)


@torch.no_grad()
def _class_embeddings(encoder: Encoder, prompts: Sequence[Sequence[str]], poll: Callable[[], None]) -> Tensor:
    mine = my_share(len(prompts))
    common = len(prompts) // distributed.world_size()
    parts, batch = [encoder.encode_text([])], []
    for place, label in enumerate(mine):
        if place < common:
            poll()
        batch.append(prompts[label])
        if place + 1 == len(mine) or sum(map(len, batch)) >= _TEXTS_AT_ONCE:
            text = encoder.encode_text([prompt for texts in batch for prompt in texts], batch_size=TEXTS)
            means = torch.stack([rows.mean(0) for rows in torch.split(text, [len(texts) for texts in batch])])
            parts.append(normalize(means, dim=-1))
            batch = []
    return gather_by_index(torch.cat(parts), mine, len(prompts), encoder.device)
