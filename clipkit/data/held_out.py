"""A held-out split for retrieval: one sample an image, with all its captions."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from clipkit.config.json_text import parse_json
from clipkit.data.indexing import write_folder_index
from clipkit.data.shard_writer import ShardWriter

_NO_IMAGE = frozenset({"txt", "json", "cls"})


def all_captions(folder: Path, shard_size: int) -> tuple[int, int]:
    """Put all captions of an image into its ``.txt``, one a line, and byte-equal images into one sample, in place.

    A table that names an image once for each caption gives as many samples. In training that is right; in retrieval the image would
    tie with its own copies, and every such caption would count as missed. Captions that a JSON lists are taken from there.

    Args:
        folder: Shards ``0.tar``, ``1.tar``, ... with ``nshards.txt``, as ``pack`` writes a split.
        shard_size: Samples of a shard.

    Returns:
        Samples before and after.
    """
    captions: dict[bytes, list[str]] = {}
    before = broken = 0
    for _, members in _samples(folder):
        lines = captions.setdefault(_digest(members), [])
        lines += [text for text in _texts(members) if text not in lines]
        before += 1
        broken += len(members["txt"].decode("utf-8", "replace").splitlines()) > 1
    if all(len(lines) == 1 for lines in captions.values()) and len(captions) == before and not broken:
        return before, before
    merged = folder.with_name(f".{folder.name}.merged")
    shutil.rmtree(merged, ignore_errors=True)
    writer = ShardWriter(merged, shard_size, "{:d}.tar")
    for stem, members in _samples(folder):
        lines = captions.pop(_digest(members), [])
        if lines:
            writer.write(stem, members | {"txt": "\n".join(lines).encode()})
    writer.close()
    write_folder_index(merged)
    (merged / "nshards.txt").write_text(f"{writer.shards}\n")
    shutil.rmtree(folder)
    merged.rename(folder)
    return before, writer.samples


def _samples(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """What the keys say to people behind their number, and the members by extension."""
    for shard in sorted(folder.glob("*.tar"), key=lambda path: int(path.stem)):
        with tarfile.open(shard) as tar:
            key, members = "", dict[str, bytes]()
            for member in tar:
                name, _, extension = member.name.partition(".")
                if name != key and members:
                    yield key.partition("-")[2], members
                    members = {}
                file = tar.extractfile(member)
                assert file is not None  # written by pack: plain files alone
                key, members[extension] = name, file.read()
            if members:
                yield key.partition("-")[2], members


def _texts(members: dict[str, bytes]) -> list[str]:
    """A sample's captions, each on one line."""
    listed = parse_json(members["json"]).get("captions") if "json" in members else None
    texts = listed if isinstance(listed, list) and listed else [members["txt"].decode("utf-8", "replace")]
    return list(dict.fromkeys(" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()))


def _digest(members: dict[str, bytes]) -> bytes:
    image = next(data for extension, data in members.items() if extension not in _NO_IMAGE)
    return hashlib.blake2b(image, digest_size=16).digest()
