"""The parts of many shards as one: columns over all samples, and the way back from a number to its shard and key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.audit import EXAMPLES, Example, Loose, Part, image_bytes, open_shard
from clipkit.data.hashes import thumbnail
from clipkit.data.images import MOST_BYTES, BadSample, decode_image
from clipkit.data.index import load_index
from clipkit.data.source import Place
from clipkit.data.tar import ShardError
from clipkit.data.values import captions, hash64
from clipkit.data.visible import visible

Ints = NDArray[np.int64]


class Gathered:
    """Everything that was found in some shards.

    About 50 bytes for each pair of an image and a caption; twice that for a moment while the parts become one.

    Args:
        items: What was looked at, in order.
        parts: What was found in each.
        fields: Where the shards' values are.
        cache: Folder for indexes that cannot be kept beside the shards.
    """

    def __init__(
        self,
        items: Sequence[str | Loose],
        parts: Sequence[Part],
        fields: Mapping[str, tuple[Place, ...]],
        cache: Path | None,
    ) -> None:
        self.items, self.fields, self.cache = list(items), fields, cache
        self.unreadable = {visible(part.place): visible(part.error) for part in parts if part.error}
        self.starts = np.concatenate([[0], np.cumsum([part.samples for part in parts], dtype=np.int64)])
        nothing = [Part("")]
        every = list(parts) or nothing
        first = self.starts[:-1].tolist() or [0]
        self.picture = np.concatenate([start + part.picture for start, part in zip(first, every, strict=True)])
        self.owner = np.concatenate([start + part.owner for start, part in zip(first, every, strict=True)])
        self.image_hash = np.concatenate([part.image_hash for part in every])
        self.look = np.concatenate([part.look for part in every])
        self.colour = np.concatenate([part.colour for part in every])
        self.size = np.concatenate([part.size for part in every])
        self.text_hash = np.concatenate([part.text_hash for part in every])
        self.formats: Counter[str] = Counter()
        self.traits: Counter[str] = Counter()
        self.suspicious: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.lengths: dict[str, Counter[int]] = {}
        self.examples: dict[str, list[Example]] = {}
        for part in parts:
            self.formats.update(part.formats)
            self.traits.update(part.traits)
            self.suspicious.update(part.suspicious)
            self.broken.update(part.broken)
            for unit, counts in part.lengths.items():
                self.lengths.setdefault(unit, Counter()).update(counts)
            for cause, found in part.examples.items():
                held = self.examples.setdefault(cause, [])
                held += found[: EXAMPLES - len(held)]

    @property
    def samples(self) -> int:
        """Of all shards that can be read."""
        return int(self.starts[-1])

    @cached_property
    def files(self) -> Ints:
        """Rows of ``picture``, the first of each set of equal files, sorted by hash."""
        return np.asarray(np.unique(self.image_hash, return_index=True)[1], np.int64)

    def place(self, sample: int) -> dict[str, str]:
        """Shard and key of a sample."""
        part = int(np.searchsorted(self.starts, sample, side="right")) - 1
        item, number = self.items[part], sample - int(self.starts[part])
        if isinstance(item, Loose):
            return {"file": visible(str(item.pictures[number]))}
        return {"shard": visible(item), "key": visible(load_index(item, self.cache).name(number), 200)}

    def _again(self, sample: int, name: str) -> list[str] | bytes | None:
        """Captions or image file of a sample, read once more; None if they are no longer there."""
        part = int(np.searchsorted(self.starts, sample, side="right")) - 1
        item, number = self.items[part], sample - int(self.starts[part])
        try:
            if isinstance(item, Loose):
                return item.pictures[number].read() if name == "image" else list(item.texts[number])
            with closing(open_shard(item, self.fields, self.cache)) as reader:
                members = reader.members(0, 0, number, MOST_BYTES)
            return (image_bytes if name == "image" else captions)(members, self.fields[name])
        except (BadSample, ShardError, OSError):
            return None

    def text(self, row: int) -> str:
        """The caption of a row of ``text_hash``."""
        texts = self._again(int(self.owner[row]), "text") or ()
        found = (text for text in texts if isinstance(text, str) and hash64(text.encode()) == self.text_hash[row])
        return next((visible(text, 200) for text in found), "")

    def thumbnail(self, row: int) -> NDArray[np.int16] | None:
        """A row of ``picture`` as RGB (3, 32, 32)."""
        data = self._again(int(self.picture[row]), "image")
        return thumbnail(decode_image(data)).astype(np.int16) if isinstance(data, bytes) else None
