"""What is embedded, in parts that are read one at a time: a shard, or a stretch of a folder or a CSV."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from braceexpand import braceexpand

from clipkit.config.json_text import parse_json
from clipkit.data.index import ShardIndex, default_cache, load_index
from clipkit.data.node_cache import NodeCache, OpenedShard
from clipkit.data.source import expand_shards
from clipkit.data.urls import is_remote, local_names, shard_name, shown
from clipkit.evaluation.digests import digest
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
        place: What is told of where it lies; empty: the path of its image.
        lacking: Why there is no picture to be read; empty: there is one.
    """

    key: str
    image: ImageFile
    captions: tuple[str, ...]
    place: str = ""
    lacking: str = ""


@dataclass(frozen=True)
class Part:
    """Some of the data: a shard, or loose files.

    Args:
        name: What the manifest calls it.
        state: Hash of what lies there, captions included and without reading pictures: another state is other data.
        shard: The tar, read when its turn comes.
        items: The loose files.
        url: The remote tar, fetched when its turn comes; its state is its address, and a fetch says if it is another than before.
    """

    name: str
    state: str
    shard: Path | None = None
    items: tuple[Item, ...] = ()
    url: str | None = None

    @contextlib.contextmanager
    def read(self) -> Iterator[list[Item]]:
        """The pictures in order, which can be read while the block runs.

        Raises:
            ValueError: If the shard cannot be had or indexed.
        """
        if self.url is not None:
            with _held(self.url) as (path, index):
                yield _items_of_shard(path, index, place=shown(self.url))
        elif self.shard is not None:
            yield _items_of_shard(self.shard, load_index(self.shard))
        else:
            yield list(self.items)


def parts_of(data: str | Path) -> list[Part]:
    """Cut the data into parts.

    Args:
        data: Shards (``x/{000..099}.tar``, here or remote, one tar, or a folder of tars), a folder of pictures with or without ``NAME.txt``
            beside them, or a CSV with ``filepath`` and ``caption``.

    Raises:
        ValueError: If there is no such place or nothing to embed in it.
    """
    if remote_shards(data):
        urls = expand_shards(str(data))
        return [Part(shard_name(url), digest(["url", local_names(url)]), url=url) for url in urls]
    if (shards := _shards(str(data))) is not None:
        return [Part(path.name, _state([path]), shard=path) for path in shards]
    path = Path(data)
    if path.is_file() and path.suffix.lower() not in (".csv", ".tsv"):
        raise ValueError(f"{path}: neither a .tar, a .csv, a .tsv nor a folder; name one of them")
    items = _items_of_csv(path) if path.is_file() else _items_of_folder(path)
    stretches = [items[start : start + FILES] for start in range(0, len(items), FILES)]
    return [
        Part(f"{path.name}:{number * FILES}", _state_of(stretch), items=tuple(stretch))
        for number, stretch in enumerate(stretches)
    ]


def remote_shards(data: str | Path) -> bool:
    """Whether ``data`` names tars on a server, and not a folder of a set in CLIP_benchmark's layout."""
    return is_remote(str(data)) and urlsplit(str(data)).path.endswith(".tar")


@contextlib.contextmanager
def _held(url: str) -> Iterator[tuple[Path, ShardIndex]]:
    """A remote shard on this machine: a link to it in the cache, which stays when the cache lets go of the shard meanwhile."""
    cache = default_cache()
    node = NodeCache(cache)
    folder = cache / "embedding"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"{uuid.uuid4().hex}.tar"
    shard = node.open(url)
    try:
        _link(shard, link)
        yield link, shard.index
    finally:
        os.close(shard.fd)
        link.unlink(missing_ok=True)


def _link(shard: OpenedShard, link: Path) -> None:
    try:
        os.link(shard.path, link)
    except OSError:  # a file system without links, or the cache let go of it just now: what is open is still whole
        with os.fdopen(os.dup(shard.fd), "rb") as source, link.open("wb") as target:
            source.seek(0)
            shutil.copyfileobj(source, target)


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


def _state_of(items: Sequence[Item]) -> str:
    return digest([_state([item.image.path for item in items]), [[item.key, *item.captions] for item in items]])


def _items_of_shard(shard: Path, index: ShardIndex, place: str = "") -> list[Item]:
    def span(field: str, sample: int) -> tuple[int, int] | None:
        offset, length = (int(column[sample]) for column in index.fields[field]) if field in index.fields else (-1, 0)
        return (offset, length) if offset >= 0 else None

    items = []
    for sample in range(len(index)):
        key = index.name(sample)
        where = next((found for name in IMAGE_EXTENSIONS if (found := span(name, sample))), None)
        lacking = "" if where else f"no image; the fields {', '.join(IMAGE_EXTENSIONS)} are read"
        text, more = span("txt", sample), span("json", sample)
        captions: tuple[str, ...] = ()
        if text:
            captions = split_captions(read_span(shard, *text).decode(errors="replace"))
        elif more:
            captions = _captions_in(read_span(shard, *more))
        items.append(Item(key, ImageFile(shard, key, *(where or (0, 0))), captions, place, lacking))
    return items


def _captions_in(data: bytes) -> tuple[str, ...]:
    """``captions`` or ``caption`` of a sample's JSON, as clipkit's and img2dataset's shards have them."""
    try:
        found = parse_json(data)
    except ValueError:
        return ()
    found = found.get("captions", found.get("caption")) if isinstance(found, dict) else None
    return tuple(text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str) and text)


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
