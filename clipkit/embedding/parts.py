"""What is embedded, in parts that are read one at a time: a shard, or a stretch of a folder or a CSV."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from clipkit.data.index import load_index
from clipkit.evaluation.folders import find_images, open_csv
from clipkit.evaluation.samples import IMAGE_EXTENSIONS, ImageFile, read_span, read_text, split_captions

FILES = 4096  # loose images of one part


@dataclass(frozen=True)
class Item:
    """One picture to embed.

    Args:
        key: The sample's key in its shard, or the file's path below the folder of the data.
        image: Where its bytes lie.
        captions: Its captions; none is no mistake.
    """

    key: str
    image: ImageFile
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Some of the data: a shard, or loose files.

    Args:
        name: What the manifest calls it.
        state: Hash of what lies there, without reading pictures: another state is other data.
        shard: The tar, read when its turn comes.
        items: The loose files.
    """

    name: str
    state: str
    shard: Path | None = None
    items: tuple[Item, ...] = ()

    def read(self) -> list[Item]:
        """The pictures in order.

        Raises:
            ValueError: If the shard cannot be indexed, or a sample has no picture.
        """
        return list(self.items) if self.shard is None else _items_of_shard(self.shard)


def parts_of(data: str | Path) -> list[Part]:
    """Cut the data into parts.

    Args:
        data: Shards (``x/{000..099}.tar``, one tar, or a folder of tars), a folder of pictures with or without ``NAME.txt``
            beside them, or a CSV with ``filepath`` and ``caption``.

    Raises:
        ValueError: If there is no such place or nothing to embed in it.
    """
    if (shards := _shards(str(data))) is not None:
        return [Part(path.name, _state([path]), shard=path) for path in shards]
    path = Path(data)
    if path.is_file() and path.suffix.lower() not in (".csv", ".tsv"):
        raise ValueError(f"{path}: neither a .tar, a .csv, a .tsv nor a folder; name one of them")
    items = _items_of_csv(path) if path.is_file() else _items_of_folder(path)
    stretches = [items[start : start + FILES] for start in range(0, len(items), FILES)]
    return [
        Part(f"{path.name}:{number * FILES}", _state([item.image.path for item in stretch]), items=tuple(stretch))
        for number, stretch in enumerate(stretches)
    ]


def _shards(data: str) -> list[Path] | None:
    """The tars that ``data`` names; None where it names no tars."""
    if data.endswith(".tar"):
        found = [Path(name) for name in braceexpand(data)]
        missing = [path for path in found if not path.is_file()]
        if missing:
            raise ValueError(f"{missing[0]}: no such shard ({len(missing)} of {len(found)} are missing)")
        return found
    path = Path(data)
    if not path.exists():
        raise ValueError(f"{data}: no such file or folder; shards are written x/{{000..099}}.tar")
    if not path.is_dir():
        return None
    for folder in (path, path / "test"):  # the second is CLIP_benchmark's layout
        if found := sorted(folder.glob("*.tar"), key=lambda tar: (len(tar.name), tar.name)):
            return found
    return None


def _state(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        found = os.stat(path)
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _items_of_shard(shard: Path) -> list[Item]:
    index = load_index(shard)

    def span(field: str, sample: int) -> tuple[int, int] | None:
        offset, length = (int(column[sample]) for column in index.fields[field]) if field in index.fields else (-1, 0)
        return (offset, length) if offset >= 0 else None

    items = []
    for sample in range(len(index)):
        key = index.name(sample)
        place = next((found for name in IMAGE_EXTENSIONS if (found := span(name, sample))), None)
        if place is None:
            known = ", ".join(IMAGE_EXTENSIONS)
            raise ValueError(f"{shard}, sample {key!r}: no image; the fields {known} are read")
        text = span("txt", sample)
        captions = split_captions(read_span(shard, *text).decode(errors="replace")) if text else ()
        items.append(Item(key, ImageFile(shard, key, *place), captions))
    return items


def _items_of_folder(path: Path) -> list[Item]:
    found = find_images(path)
    if not found:
        raise ValueError(
            f"{path}: neither shards nor pictures (jpg, png, webp, gif, bmp) in this folder; check the path"
        )
    items = []
    for image in found:
        beside = image.with_suffix(".txt")
        captions = split_captions(read_text(beside)) if beside.is_file() else ()
        items.append(Item(str(image.relative_to(path)), ImageFile(image), captions))
    return items


def _items_of_csv(path: Path) -> list[Item]:
    found = open_csv(path)
    pairs = zip(found.images, found.captions, strict=True)
    return [Item(os.path.relpath(image.path, path.parent), image, captions) for image, captions in pairs]
