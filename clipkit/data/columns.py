"""Numbers about the samples of a shard, one column each: read once, when a selection first names them, and kept in the sidecar.

A name is a key of the samples' ``.json`` member, as img2dataset writes them, or one of those below. A value that is missing,
or neither a number nor the text of one, is NaN (0 in a column of hashes).

``image_width``, ``image_height``: of the image's header, not turned by EXIF; ``width``, ``height``: the JSON's where it has
them (img2dataset: of the stored image), else the header's; ``side``, ``aspect``: the shorter of these, and the longer by the
shorter; ``caption_length``: characters of the first caption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.expression import NAME
from clipkit.config.json_text import parse_json
from clipkit.data.images import MOST_BYTES, BadSample, image_size
from clipkit.data.index import Ints, ShardIndex
from clipkit.data.source import Place, Source
from clipkit.data.tar import pread
from clipkit.data.values import MOST_TEXT_BYTES, caption, find, hash64, label

BUILT_IN = ("width", "height", "side", "aspect", "image_width", "image_height", "caption_length")
UID_HIGH, UID_LOW = "uid_high", "uid_low"
_HEAD = 1 << 16  # bytes in which nearly every image tells its size
_NONE = float("nan")

Column = NDArray[np.float64] | Ints


class Members(Mapping[str, bytes]):
    """A sample's members, read when they are asked for."""

    def __init__(self, fd: int, path: str, index: ShardIndex, sample: int) -> None:
        self.fd, self.path, self.index, self.sample = fd, path, index, sample

    def __contains__(self, extension: object) -> bool:
        return extension in self.index.fields and self.index.fields[str(extension)][0][self.sample] >= 0

    def __iter__(self) -> Iterator[str]:
        return (extension for extension in self.index.fields if extension in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, extension: str) -> bytes:
        return self.head(extension, MOST_BYTES + 1)

    def head(self, extension: str, most: int) -> bytes:
        """At most so many of a member's first bytes."""
        offset, length = (int(values[self.sample]) for values in self.index.fields[extension])
        return pread(self.fd, min(length, most), offset, self.path)


class _Sample:
    def __init__(self, members: Members) -> None:
        self.members = members

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The JSON member; empty where there is none that can be read."""
        data = self.members.head("json", MOST_TEXT_BYTES + 1) if "json" in self.members else b""
        try:
            held = parse_json(data) if len(data) <= MOST_TEXT_BYTES else None
        except ValueError:
            return {}
        return held if isinstance(held, dict) else {}

    def number(self, key: str) -> float:
        value = self.meta.get(key)
        try:
            return float(value) if isinstance(value, int | float | str) else _NONE
        except (OverflowError, ValueError):
            return _NONE

    def size(self, places: Sequence[Place]) -> tuple[float, float]:
        extension = next((place.extension for place in places if place.extension in self.members), None)
        for most in (_HEAD, MOST_BYTES) if extension is not None else ():
            try:
                return image_size(self.members.head(str(extension), most))
            except BadSample:
                pass  # its header may be longer than the first bytes
        return _NONE, _NONE

    def uid(self) -> tuple[int, int]:
        """The 128 bits of DataComp's ``uid``, as two signed integers."""
        value = self.meta.get("uid")
        try:
            bits = bytes.fromhex(value) if isinstance(value, str) else b""
        except ValueError:
            bits = b""
        high, low = (int.from_bytes(part, "big", signed=True) for part in (bits[:8], bits[8:]))
        return (high, low) if len(bits) == 16 else (0, 0)


@dataclass(frozen=True)
class Wanted:
    """A column that is asked for.

    Args:
        kind: What is taken from a sample, a key of ``VALUES``.
        key: Of the JSON member, for the kinds that read one.
        places: Of the field, for the kinds that read one.
    """

    kind: str
    key: str = ""
    places: tuple[Place, ...] = ()

    @property
    def stored(self) -> str:
        """Its name in the sidecar: another place of the field is another column."""
        return f"{self.kind}:{self.key}:{','.join(f'{place.extension}.{place.key}' for place in self.places)}"

    @property
    def hashed(self) -> bool:
        """Whether it holds 64-bit hashes, 0 where there is none, and not numbers."""
        return self.kind in ("class", "label", "image_hash", UID_HIGH, UID_LOW)

    def missing(self, values: Column) -> NDArray[np.bool_]:
        """Where a column has no value (N,)."""
        return values == 0 if self.hashed else np.isnan(values)


def _class(sample: _Sample, wanted: Wanted) -> int:
    value = sample.meta.get(wanted.key)
    text = value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return 0 if value is None or not text else hash64(text.encode())


def _image_hash(sample: _Sample, wanted: Wanted) -> int:
    found = find(sample.members, wanted.places)
    return 0 if found is None else hash64(found[1])


def _side(sample: _Sample, wanted: Wanted, which: int) -> float:
    given = sample.number(wanted.key) if wanted.key else _NONE
    return sample.size(wanted.places)[which] if np.isnan(given) else given


VALUES: dict[str, Callable[[_Sample, Wanted], float | int]] = {
    "number": lambda sample, wanted: sample.number(wanted.key),
    "class": _class,
    "label": lambda sample, wanted: label(sample.members, wanted.places),
    "width": partial(_side, which=0),
    "height": partial(_side, which=1),
    "caption_length": lambda sample, wanted: len(caption(sample.members, wanted.places, 0.0)),
    "image_hash": _image_hash,
    UID_HIGH: lambda sample, _: sample.uid()[0],
    UID_LOW: lambda sample, _: sample.uid()[1],
}


def number_columns(name: str, source: Source) -> list[Wanted]:
    """What is gathered for a column that a filter or a weight names: itself, or what it is derived from."""
    places = source.places()
    image = places.get("image", ())
    if name in ("side", "aspect"):
        return [Wanted("width", "width", image), Wanted("height", "height", image)]
    if name in ("width", "height"):
        return [Wanted(name, name, image)]
    if name in ("image_width", "image_height"):
        return [Wanted(name.removeprefix("image_"), "", image)]
    if name == "caption_length":
        return [Wanted(name, "", places.get("text", ()))]
    return [Wanted("number", name)]


def class_column(name: str, source: Source) -> Wanted:
    """The column of a class: a field `label` of the source, else a key of the JSON, a number or a text."""
    places = source.places()
    return Wanted("label", "", places["label"]) if name == "label" and name in places else Wanted("class", name)


def number_values(name: str, source: Source, stored: Mapping[str, Column]) -> NDArray[np.float64]:
    """A column of numbers, derived ones too (N,), from those that are stored."""
    held = [stored[wanted.stored] for wanted in number_columns(name, source)]
    if len(held) == 1:
        return held[0].astype(np.float64)
    short, long = np.minimum(*held), np.maximum(*held)
    if name == "side":
        return short.astype(np.float64)
    aspect: NDArray[np.float64] = np.divide(long, short, out=np.full(len(short), np.nan), where=short > 0)
    return aspect


def json_keys(members: Members, *, numbers: bool) -> list[str]:
    """Keys of a sample's JSON member that a filter can name; of numbers alone, or of texts too."""
    sample = _Sample(members)
    return [key for key in sample.meta if NAME.fullmatch(key) and not (numbers and np.isnan(sample.number(key)))]


def values(members: Members, wanted: Sequence[Wanted]) -> list[float | int]:
    """What a sample has in each of some columns."""
    sample = _Sample(members)
    found: list[float | int] = []
    for column in wanted:
        try:
            found.append(VALUES[column.kind](sample, column))
        except BadSample:
            found.append(0 if column.hashed else _NONE)
    return found
