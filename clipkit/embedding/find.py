"""Questions asked of a folder of embeddings: words to pictures, a picture to pictures and texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from clipkit.data.images import BadSample, decode_image
from clipkit.embedding.approximate import Index
from clipkit.embedding.search import top_k
from clipkit.embedding.store import Shown, Store
from clipkit.encoder import Encoder
from clipkit.evaluation.digests import digest
from clipkit.evaluation.fingerprints import encoder_hashes
from clipkit.towers.open_clip import token_counts

_log = logging.getLogger(__name__)
Kind = Literal["images", "texts"]


@dataclass(frozen=True)
class Hit:
    """One result.

    Args:
        score: Cosine.
        kind: ``images`` or ``texts``.
        row: Counted over all parts.
        shown: What a person sees of it.
    """

    score: float
    kind: Kind
    row: int
    shown: Shown


class Finder:
    """A folder of embeddings and the encoder that made it.

    Args:
        store: The folder.
        encoder: The encoder.
        indices: Folder of approximate indices, or None for exact search.

    Raises:
        ValueError: If the encoder is another than the one that made the embeddings.
    """

    def __init__(self, store: Store, encoder: Encoder, *, indices: Path | None = None) -> None:
        hashes = encoder_hashes(encoder)
        for key, what in (("weights", "weights"), ("preprocessing", "preprocessing")):
            if store.manifest.get(key) != hashes[key]:
                raise ValueError(
                    f"{store.folder} was embedded by {store.manifest['model']} with other {what} than {encoder.info.model}'s; "
                    "name that model with --model, or embed again"
                )
        self.store = store
        self.encoder = encoder
        self._indices: dict[str, Index] = {}
        self._folder = indices

    def words(self, texts: Sequence[str], k: int, kind: Kind = "images") -> list[list[Hit]]:
        """The k nearest pictures (or texts) of each text; an over-long text is cut, and that is said.

        Raises:
            ValueError: If a text is empty, or nothing was embedded that could be found.
        """
        if any(not text.strip() for text in texts):
            raise ValueError("an empty query; write what is to be found")
        before = self.encoder.texts_cut
        query = self.encoder.encode_text(list(texts))
        if self.encoder.texts_cut > before:
            text = "%d of %d queries are longer than the context of the model and were cut"
            _log.warning(text, self.encoder.texts_cut - before, len(texts))
        return self._nearest(query, k, kind)

    def over_long(self, text: str) -> bool:
        """Whether a text is longer than the context of the model."""
        return token_counts(self.encoder.tokenize, [text])[0] > self.encoder.tokenize([text]).shape[1]

    def picture(self, data: bytes, k: int, kind: Kind = "images", name: str = "the picture") -> list[Hit]:
        """The k pictures (or texts) nearest to a picture.

        Args:
            data: An image file.
            k: How many.
            kind: What to find.
            name: What an error calls it.

        Raises:
            ValueError: If it cannot be read.
        """
        try:
            pixels = decode_image(data)
        except BadSample as error:
            raise ValueError(f"{name} cannot be read ({error}); give a whole JPEG, PNG, WebP, GIF or BMP") from error
        return self._nearest(self.encoder.encode_image([pixels]), k, kind)[0]

    def _nearest(self, query: Tensor, k: int, kind: Kind) -> list[list[Hit]]:
        parts = self.store.images if kind == "images" else self.store.texts
        if not sum(len(part) for part in parts):
            raise ValueError(f"{self.store.folder} holds no {kind}; embed data that has captions to find texts")
        scores, rows = self._index(kind).top_k(query, k) if self._folder else top_k(parts, query, k)
        if not bool(scores.isfinite().all()):  # NaN and infinity come first
            place = self.store.place(kind, int(rows[~scores.isfinite()][0]))
            raise ValueError(f"{place} is damaged: NaN or infinity; run the same `clipkit embed` again")
        return [
            [Hit(score, kind, row, self.store.shown(kind, row)) for score, row in zip(one, where, strict=True)]
            for one, where in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def _index(self, kind: Kind) -> Index:
        assert self._folder is not None
        if kind not in self._indices:
            made = self.store.manifest
            mark = digest([made.get(key) for key in ("weights", "preprocessing", "data", "dtype", "images")])[:32]
            parts = self.store.images if kind == "images" else self.store.texts
            self._indices[kind] = Index(parts, self._folder / f"{mark}-{kind}.usearch")
        return self._indices[kind]
