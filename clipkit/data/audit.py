"""Look at every sample of a shard as training would: what is broken, and what little is kept of the rest to compare it by.

Kept of a sample are hashes and sizes, about 45 bytes for an image and a caption, never pixels or texts: a shard's ``Part`` is
small enough to be sent between processes.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipkit.data.catalogue import Catalogue
from clipkit.data.hashes import SIDE, looks, thumbnail
from clipkit.data.images import MOST_BYTES, BadSample, decode_image
from clipkit.data.index import load_index
from clipkit.data.reader import ShardReader
from clipkit.data.source import Place
from clipkit.data.tar import ShardError
from clipkit.data.values import captions, find, hash64, label
from clipkit.data.visible import visible

EXAMPLES = 5
NO_CAPTIONS = frozenset({"nan", "none", "null", "n/a", "#n/a", "<na>", "undefined"})
"""What tables write for an empty cell; as a whole caption it was hardly meant."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x112
_AT_ONCE = 1024  # thumbnails of 3 KB

Count = Callable[[list[str]], list[int]]
Ints = NDArray[np.int64]


class Example(NamedTuple):
    """One bad sample, for a person to look at."""

    shard: str
    key: str
    detail: str


class Picture(Protocol):
    """An image that lies outside the shards of training; its text says where."""

    def read(self) -> bytes:
        """Its bytes."""
        ...


@dataclass(frozen=True)
class Loose:
    """Pictures, with captions or without, that are looked at together.

    Args:
        pictures: Where their bytes are.
        texts: Of each its captions.
    """

    pictures: Sequence[Picture]
    texts: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return f"{self.pictures[0]} and {len(self.pictures) - 1} more"


@dataclass
class Part:
    """What is kept of one shard.

    Args:
        place: Path of the shard.
        samples: How many it holds.
        error: Why it cannot be read at all; empty if it can.
        picture: Number of each sample whose image can be decoded (P,).
        image_hash: Of the files' bytes (P,).
        look: Perceptual hashes (P,).
        colour: Mean colours (P,).
        size: Width and height (P, 2).
        owner: Number of the sample that each caption belongs to (T,).
        text_hash: Of the captions (T,).
        lengths: Per unit (characters, words, tokens) how many captions have which length.
        formats: How many images are of which format.
        traits: How many are animated, CMYK, of 16 bits and so on.
        suspicious: How many captions are a table's empty cell.
        broken: By cause how many samples training could not use.
        examples: By cause the first of them.
    """

    place: str
    samples: int = 0
    error: str = ""
    picture: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    image_hash: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    look: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    colour: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    size: NDArray[np.uint32] = field(default_factory=lambda: np.empty((0, 2), np.uint32))
    owner: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    text_hash: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)
    suspicious: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspect:
    """What is looked at, sent to the workers; call it with a shard's path or with loose pictures.

    Args:
        fields: Per field the places where its value may be.
        count: Captions to their lengths in tokens, special ones included, before anything is cut; None counts none.
        cache: Folder for indexes that cannot be kept beside the shards.
    """

    fields: Mapping[str, tuple[Place, ...]]
    count: Count | None
    cache: Path | None

    def __call__(self, item: str | Loose) -> Part:
        """Look at one shard or at some loose pictures."""
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # each of the workers has a core
        if isinstance(item, Loose):
            look = _Look(str(item), len(item.pictures))
            for number, (picture, texts) in enumerate(zip(item.pictures, item.texts, strict=True)):
                look.take(number, partial(str, picture), partial(_read, picture), partial(list, texts), None)
            return look.part(self.count)
        try:
            return self._shard(item)
        except ShardError as error:
            return Part(place=item, error=str(error))

    def _shard(self, path: str) -> Part:
        reader = open_shard(path, self.fields, self.cache)
        look = _Look(path, int(reader.catalogues[0].counts[0]))
        try:
            for number in range(look.found.samples):
                key = partial(reader.key, 0, 0, number)
                try:
                    members = reader.members(0, 0, number, MOST_BYTES)
                except BadSample as error:
                    look.bad(key, error)
                    continue
                image, texts, group = (self._from(members, name) for name in ("image", "text", "label"))
                look.take(number, key, image, texts, group)
        finally:
            reader.close()
        return look.part(self.count)

    def _from(self, members: Mapping[str, bytes], name: str) -> Callable[[], object] | None:
        """Reads one field of a sample; None where it is not asked for."""
        if name not in self.fields:
            return None
        reading = {"image": image_bytes, "text": captions, "label": label}[name]
        return partial(reading, members, self.fields[name])


def open_shard(path: str, fields: Mapping[str, tuple[Place, ...]], cache: Path | None) -> ShardReader:
    """A reader of one shard and the members that the fields name.

    Raises:
        ShardError: If it cannot be indexed.
    """
    index = load_index(path, cache)
    catalogue = Catalogue(np.array([os.fsencode(path)]), np.array([len(index)]), np.array([index.fingerprint.encode()]))
    return ShardReader([catalogue], [frozenset(place.extension for every in fields.values() for place in every)], cache)


def image_bytes(members: Mapping[str, bytes], places: Sequence[Place]) -> bytes:
    """The image file of a sample.

    Raises:
        BadSample: If it has none.
    """
    found = find(members, places)
    if found is None:
        raise BadSample("no_image", "no member " + " or ".join(f".{place.extension}" for place in places))
    return found[1]


def _read(picture: Picture) -> bytes:
    try:
        return picture.read()
    except OSError as error:
        raise BadSample("unreadable", str(error)) from error


class _Look:
    """The samples of one shard as they are gone through."""

    def __init__(self, place: str, samples: int) -> None:
        self.found = Part(place=place, samples=samples)
        self._pictures: list[tuple[int, int, int, int]] = []  # sample, hash, width, height
        self._thumbnails: list[NDArray[np.uint8]] = []
        self._looks: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []
        self._owner: list[int] = []
        self._texts: list[str] = []

    def bad(self, key: Callable[[], str], error: BadSample) -> None:
        self.found.broken[error.cause] += 1
        examples = self.found.examples.setdefault(error.cause, [])
        if len(examples) < EXAMPLES:
            examples.append(Example(visible(self.found.place), visible(key(), 200), visible(error.detail, 200)))

    def take(
        self,
        number: int,
        key: Callable[[], str],
        image: Callable[[], object] | None,
        texts: Callable[[], object] | None,
        group: Callable[[], object] | None,
    ) -> None:
        """One sample; its first fault in training's order is its cause, and what else it has is kept nevertheless."""
        faults: list[BadSample] = []
        steps = ((texts, self._take_texts), (group, None), (image, self._take_image))
        for read, take in steps:
            if read is None:
                continue
            try:
                value = read()
                if take is not None:
                    take(number, value)
            except BadSample as error:
                faults.append(error)
        if faults:
            self.bad(key, faults[0])

    def _take_texts(self, number: int, value: object) -> None:
        assert isinstance(value, list)
        self._texts += value
        self._owner += [number] * len(value)
        self.found.suspicious.update(text for text in value if text.casefold() in NO_CAPTIONS)

    def _take_image(self, number: int, data: object) -> None:
        assert isinstance(data, bytes)
        pixels = decode_image(data)
        height, width = pixels.shape[1:]
        self._pictures.append((number, hash64(data), width, height))
        self._thumbnails.append(thumbnail(pixels))
        if len(self._thumbnails) == _AT_ONCE:
            self._hash()
        kind, traits = describe(data)
        self.found.formats[kind] += 1
        self.found.traits.update(traits)

    def _hash(self) -> None:
        self._looks.append(looks(np.array(self._thumbnails, np.uint8).reshape(-1, 3, SIDE, SIDE)))
        self._thumbnails.clear()

    def part(self, count: Count | None) -> Part:
        """All that was found, as arrays."""
        part, columns = self.found, np.array(self._pictures, np.int64).reshape(-1, 4)
        part.picture, part.image_hash = columns[:, 0].astype(np.int32), columns[:, 1].copy()
        part.size = columns[:, 2:].astype(np.uint32)
        self._hash()
        part.look, part.colour = (np.concatenate(column) for column in zip(*self._looks, strict=True))
        part.owner = np.array(self._owner, np.int32)
        part.text_hash = np.array([hash64(text.encode()) for text in self._texts], np.int64)
        part.lengths = {
            "characters": Counter(len(text) for text in self._texts),
            "words": Counter(len(text.split()) for text in self._texts),
        }
        if count is not None:
            part.lengths["tokens"] = Counter(count(self._texts) if self._texts else [])
        return part


def describe(data: bytes) -> tuple[str, list[str]]:
    """Format and traits of an image file that can be decoded, from its header.

    Returns:
        ``JPEG``, ``PNG``, ``WEBP``, ``GIF`` or ``BMP``; and any of animated, cmyk, 16_bit, palette, transparent, grey, turned.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures: decoding has its own bound
        try:
            with Image.open(BytesIO(data), formats=_FORMATS) as image:
                mode, kind = image.mode, str(image.format)
                turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1
                animated = bool(getattr(image, "is_animated", False))
                transparent = mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        except Exception:  # torchvision took what Pillow's plugins, which raise anything, do not
            return "other", []
    deep = mode.startswith("I") or (kind == "PNG" and data[24] == 16)
    facts = {
        "animated": animated,
        "cmyk": mode == "CMYK",
        "16_bit": deep,
        "palette": mode == "P",
        "transparent": transparent,
        "grey": mode in ("1", "L", "LA"),
        "turned": turned,
    }
    return ("JPEG" if kind == "MPO" else kind), [name for name, holds in facts.items() if holds]
