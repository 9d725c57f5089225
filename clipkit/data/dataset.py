"""A request for planned samples to a batch: read, decode, substitute what is bad, augment, tokenise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipkit.data.augment import Augment
from clipkit.data.catalogue import Catalogue
from clipkit.data.draws import CAPTION, uniforms
from clipkit.data.images import MOST_BYTES, BadSample, decode_image
from clipkit.data.node_cache import NodeCache
from clipkit.data.plan import Ints, Rows
from clipkit.data.reader import ShardReader
from clipkit.data.source import Place, Source
from clipkit.data.transforms import Preprocess
from clipkit.data.urls import shown
from clipkit.data.values import caption, find, hash64, label

_MOST_SUBSTITUTES = 100


class Order(Protocol):
    """Positions to samples: the plan of training, or validation's plain order."""

    def rows(self, positions: Ints) -> Rows:
        """The samples at some positions (P,)."""
        ...

    def substitute(self, position: int, batch_start: int, batch_size: int, attempt: int = 0) -> Rows | None:
        """What stands in for a bad sample."""
        ...


class Request(NamedTuple):
    """What the sampler asks a worker for.

    Args:
        start: Position of the first sample of the batch of all ranks.
        size: Samples of that batch.
        rows: This rank's samples.
    """

    start: int
    size: int
    rows: Rows


class BadRecord(NamedTuple):
    """A bad sample, in whose place another was given.

    Args:
        position: Its place in the run.
        source: Name of its source.
        epoch: Of its source.
        shard: Path of its shard.
        key: Its key.
        cause: One word.
        detail: What was found.
    """

    position: int
    source: str
    epoch: int
    shard: str
    key: str
    cause: str
    detail: str


class Sample(NamedTuple):
    """A sample that can be used; fields that its source has not are None."""

    key: str
    image: Tensor | None
    text: str | None
    label: int | None
    image_hash: int


def _stack(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


class ShardDataset(Dataset[dict[str, Any]]):
    """Map-style set over all shards; holds no state that a batch depends on.

    Args:
        sources: The sources.
        catalogues: What each holds.
        order: The order that positions follow; asked for substitutes.
        seed: The run's seed.
        tokenize: Captions to tokens (B, L).
        transform: ``Augment`` for training, ``Preprocess`` for validation.
        cache: Folder for sidecars that cannot be kept beside the shards.
        node_cache: Where remote shards are kept.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source],
        catalogues: Sequence[Catalogue],
        order: Order,
        seed: int,
        tokenize: Callable[[list[str]], Tensor],
        transform: Augment | Preprocess,
        cache: Path | None,
        node_cache: NodeCache | None = None,
    ) -> None:
        self.names = [source.name for source in sources]
        self.places: list[dict[str, tuple[Place, ...]]] = [source.places() for source in sources]
        self.catalogues = list(catalogues)
        self.order = order
        self.seed = seed
        self.tokenize = tokenize
        self.transform = transform
        wanted = [frozenset(place.extension for every in places.values() for place in every) for places in self.places]
        self.reader = ShardReader(catalogues, wanted, cache, node_cache)

    def read(self, source: int, shard: int, sample: int, draw: float) -> Sample:
        """One sample, decoded.

        Args:
            source: Index of the source.
            shard: Index of the shard.
            sample: Index of the sample.
            draw: In [0, 1), chooses among several captions.

        Raises:
            BadSample: If it cannot be used.
            ShardError: If its shard cannot be read.
        """
        places = self.places[source]
        members = self.reader.members(source, shard, sample, MOST_BYTES)
        text = caption(members, places["text"], draw) if "text" in places else None
        group = label(members, places["label"]) if "label" in places else None
        image, image_hash = None, 0
        if "image" in places:
            found = find(members, places["image"])
            if found is None:
                wanted = " or ".join(f".{place.extension}" for place in places["image"])
                raise BadSample("no_image", f"no member {wanted}")
            image, image_hash = decode_image(found[1]), hash64(found[1])
        return Sample(self.reader.key(source, shard, sample), image, text, group, image_hash)

    def _record(self, row: Rows, error: BadSample) -> BadRecord:
        source, shard = int(row.source[0]), int(row.shard[0])
        return BadRecord(
            position=int(row.position[0]),
            source=self.names[source],
            epoch=int(row.epoch[0]),
            shard=shown(self.catalogues[source].path(shard)),
            key=self.reader.key(source, shard, int(row.sample[0])),
            cause=error.cause,
            detail=error.detail,
        )

    def _read_or_substitute(self, request: Request, row: Rows, draw: float) -> tuple[Sample, int, BadRecord | None]:
        """The sample of one row, or its substitute, with its id and the record of the bad one."""
        record = None
        given: Rows | None = row
        for attempt in range(_MOST_SUBSTITUTES):
            if given is None:
                break
            try:
                sample = self.read(int(given.source[0]), int(given.shard[0]), int(given.sample[0]), draw)
                return sample, int(given.id[0]), record
            except BadSample as error:
                record = record or self._record(row, error)
            given = self.order.substitute(int(row.position[0]), request.start, request.size, attempt)
        assert record is not None
        text = f"source {record.source!r}: sample {record.key!r} of {record.shard} is bad ({record.cause}) and so is every "
        raise ValueError(text + "substitute that was tried for it; look at the source with `clipkit data check`")

    def __getitems__(self, request: Request) -> dict[str, Any]:
        """A batch of this rank: fields, ``id``, ``key``, ``position``, ``content``, ``label`` if there is one, ``bad``."""
        rows = request.rows
        draws = uniforms(self.seed, rows.position, CAPTION, 1)[:, 0]
        samples, ids, bad = [], [], []
        for number, draw in enumerate(draws.tolist()):
            sample, id_, record = self._read_or_substitute(request, rows.take(slice(number, number + 1)), draw)
            samples.append(sample)
            ids.append(id_)
            bad += [] if record is None else [record]
        content: dict[str, Tensor] = {}
        batch: dict[str, Any] = {
            "id": _stack(ids),
            "key": [sample.key for sample in samples],
            "position": request.start,
            "content": content,
            "bad": bad,
        }
        images = [sample.image for sample in samples if sample.image is not None]
        texts = [sample.text for sample in samples if sample.text is not None]
        labels = [sample.label for sample in samples if sample.label is not None]
        if images:
            batch["image"] = self._transformed(images, rows.position)
            content["image"] = _stack([sample.image_hash for sample in samples])
        if texts:
            batch["text"] = self.tokenize(texts)
            content["text"] = _stack([hash64(text.encode()) for text in texts])
        if labels:
            batch["label"] = _stack(labels)
        return batch

    def _transformed(self, images: list[Tensor], positions: Ints) -> Tensor:
        if isinstance(self.transform, Augment):
            return self.transform(images, seed=self.seed, positions=np.asarray(positions))
        return self.transform.batch(images)
