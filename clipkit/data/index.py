"""Where every sample of a shard lies, and the sidecar ``NAME.tar.idx.npz`` that keeps it.

A sample is a run of adjacent members with one key: the member's path up to the first dot of its last part. What follows
the dot, lower-cased, is the field: ``a/0001.seg.PNG`` is field ``seg.png`` of ``a/0001``.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.atomic import write_atomically
from clipkit.data.npz import read_npz
from clipkit.data.tar import BLOCK, Member, ShardError, members

VERSION = 2
_MOST_FIELDS = 64
_log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Small = NDArray[np.uint32]


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard.

    Args:
        size: Bytes of the tar.
        mtime_ns: When it was last written; tells only whether a sidecar is fresh, and is no part of the fingerprint.
        key: The samples' keys (N,), fixed-width bytes.
        offset: First header byte of each sample (N,).
        length: Bytes from there to the sample's end, padding included (N,): that stretch is itself a piece of tar.
        fields: Per field the data's offset and length, each (N,); a sample without the field has offset -1.
        checks: Per field the CRC-32 of the member's header block (N,), 0 where there is none.
    """

    size: int
    mtime_ns: int
    key: NDArray[np.bytes_]
    offset: Ints
    length: Ints
    fields: dict[str, tuple[Ints, Ints]]
    checks: dict[str, Small]

    def __len__(self) -> int:
        return len(self.offset)

    def name(self, sample: int) -> str:
        """The key of a sample as text."""
        return bytes(self.key[sample]).decode(errors="backslashreplace")

    @cached_property
    def fingerprint(self) -> str:
        """Size and a 128-bit hash of what lies where: equal for a copied shard, other for a repacked one."""
        digest = hashlib.blake2b(digest_size=16)
        for name, values in sorted(_arrays(self).items()):
            digest.update(f"{name} {values.dtype.str} {len(values)}\n".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return f"{self.size}-{digest.hexdigest()}"


def _arrays(index: ShardIndex) -> dict[str, Ints | Small | NDArray[np.bytes_]]:
    arrays: dict[str, Ints | Small | NDArray[np.bytes_]] = {
        "key": index.key,
        "offset": index.offset,
        "length": index.length,
    }
    for field, (offset, length) in index.fields.items():
        arrays |= {f"{field}_offset": offset, f"{field}_length": length, f"{field}_check": index.checks[field]}
    return arrays


def split_name(name: bytes) -> tuple[bytes, str] | None:
    """Key and field of a member, or None for a file that belongs to no sample (no extension, or a hidden file)."""
    last = name.rfind(b"/") + 1
    dot = name.find(b".", last)
    if dot <= last or dot == len(name) - 1:
        return None
    return name[:dot], _field(name[dot + 1 :])


@lru_cache(maxsize=1024)
def _field(extension: bytes) -> str:
    return extension.lower().decode(errors="backslashreplace")


def _samples(found: Iterator[Member], path: str) -> Iterator[tuple[bytes, int, int, dict[str, Member]]]:
    """Runs of members with one key: (key, start, end, members by field)."""
    seen: set[bytes] = set()
    key, start = b"", 0
    fields: dict[str, Member] = {}
    last = Member(b"", 0, 0, 0, 0)
    known: dict[bytes, str] = {}  # what may follow a key, a sample's members having mostly those of the last
    for member in found:
        name = member.name
        parts: tuple[bytes, str] | None
        if fields and name.startswith(key) and (extension := known.get(name[len(key) :])):
            parts = key, extension
        else:
            parts = split_name(name)
            if parts is not None and len(known) < _MOST_FIELDS:
                known[name[len(parts[0]) :]] = parts[1]
        if parts is None:
            continue
        if parts[0] != key or not fields:
            if fields:
                yield key, start, _end(last), fields
            key, start, fields = parts[0], member.start, {}
            if key in seen:
                text = f"{path}: the members of sample {key!r} are not side by side (again at byte {start}); "
                raise ShardError(text + "pack it with sorted names: tar --sort=name", path, start)
            seen.add(key)
        if parts[1] in fields:
            text = f"{path}: sample {key!r} has two members .{parts[1]} (the second at byte {member.start}); "
            raise ShardError(text + "give each sample a key of its own before the first dot", path, member.start)
        fields[parts[1]] = member
        last = member
    if fields:
        yield key, start, _end(last), fields


def _end(member: Member) -> int:
    return member.offset + (member.size + BLOCK - 1) // BLOCK * BLOCK


def build_index(path: str | Path) -> ShardIndex:
    """Index a shard by reading its headers.

    Args:
        path: A plain tar.

    Returns:
        Its samples in the order in which they lie.

    Raises:
        ShardError: If the shard is missing, compressed, cut short or damaged, if the members of a sample are apart, or
            if it holds no sample.
    """
    path = str(path)
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); check the path", path) from error
    try:
        status = os.fstat(fd)
        runs = list(_samples(members(fd, path), path))
    finally:
        os.close(fd)
    if not runs:
        raise ShardError(f"{path}: holds no sample; members are named KEY.EXTENSION, such as 000001.jpg", path)
    names = list(dict.fromkeys(field for _, _, _, fields in runs for field in fields))
    if len(names) > _MOST_FIELDS:
        text = (
            f"{path}: {len(names)} different fields, such as {names[:3]}; the key ends at the first dot of a name, so "
        )
        raise ShardError(text + "pack it with no dots inside the keys", path)
    empty = Member(b"", 0, -1, 0, 0)
    placed = {
        field: np.array([fields.get(field, empty)[2:] for _, _, _, fields in runs], np.int64).reshape(-1, 3)
        for field in names
    }
    start, end = (np.array([run[column] for run in runs], np.int64) for column in (1, 2))
    return ShardIndex(
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        key=np.array([run[0] for run in runs], np.bytes_),
        offset=start,
        length=end - start,
        fields={field: (spans[:, 0].copy(), spans[:, 1].copy()) for field, spans in placed.items()},
        checks={field: spans[:, 2].astype(np.uint32) for field, spans in placed.items()},
    )


def sidecar_path(path: str | Path) -> Path:
    """The sidecar beside a shard."""
    return Path(f"{path}.idx.npz")


def write_sidecar(index: ShardIndex, sidecar: Path) -> None:
    """Write an index atomically.

    Args:
        index: What to write.
        sidecar: The file, ``NAME.tar.idx.npz``.

    Raises:
        OSError: If the folder cannot be written.
    """
    scalars = {"v": np.int64(VERSION), "tar_size": np.int64(index.size), "tar_mtime_ns": np.int64(index.mtime_ns)}
    arrays = _arrays(index)
    write_atomically(sidecar, lambda file: np.savez(file, allow_pickle=False, **scalars, **arrays))


def read_sidecar(sidecar: Path) -> ShardIndex:
    """Read an index.

    Args:
        sidecar: The file, ``NAME.tar.idx.npz``.

    Raises:
        OSError: If there is none.
        ValueError: If it is damaged, of another version, or points outside its tar.
    """
    try:
        held = read_npz(sidecar)
        version, size, mtime = (int(held.pop(name)) for name in ("v", "tar_size", "tar_mtime_ns"))
        key, offset, length = held["key"], held["offset"], held["length"]
        names = [name.removesuffix("_offset") for name in held if name.endswith("_offset")]
        fields = {name: (held[f"{name}_offset"], held[f"{name}_length"]) for name in names}
        checks = {name: held[f"{name}_check"] for name in names}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        text = str(error).removeprefix(f"{sidecar}: ")
        raise ValueError(f"{sidecar}: damaged ({text}); delete it, it is made again") from error
    if version != VERSION:
        raise ValueError(f"{sidecar}: version {version}, this clipkit reads {VERSION}; delete it, it is made again")
    # a sidecar may come from a stranger: what it says must lie inside the tar before anything is read by it
    for start, span in [(offset, length), *fields.values()]:
        if start.shape != key.shape or span.shape != key.shape or key.ndim != 1 or key.dtype.kind != "S":
            raise ValueError(f"{sidecar}: columns of different lengths; delete it, it is made again")
        inside = (start >= -1) & (start <= size) & (span >= 0) & (span <= size - start)
        inside &= (start == -1) | (start % BLOCK == 0)
        if start.dtype != np.int64 or span.dtype != np.int64 or not inside.all():
            raise ValueError(f"{sidecar}: it points outside its shard of {size} bytes; delete it, it is made again")
    if any(check.shape != key.shape or check.dtype != np.uint32 for check in checks.values()):
        raise ValueError(f"{sidecar}: columns of different lengths; delete it, it is made again")
    return ShardIndex(size=size, mtime_ns=mtime, key=key, offset=offset, length=length, fields=fields, checks=checks)


def _kept(sidecar: Path) -> ShardIndex | None:
    try:
        return read_sidecar(sidecar)
    except OSError:
        return None
    except ValueError as error:
        _log.warning("%s", error)
        return None


def default_cache() -> Path:
    """CLIPKIT_CACHE, else ``~/.cache/clipkit``."""
    return Path(os.environ.get("CLIPKIT_CACHE") or Path.home() / ".cache" / "clipkit").expanduser()


def cached_path(path: str | Path, cache: Path) -> Path:
    """Where the cache keeps a file that cannot lie at its own path."""
    origin = hashlib.blake2b(os.path.abspath(path).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return cache / "index" / f"{origin}-{os.path.basename(path)}"


@dataclass(frozen=True)
class Opened:
    """A shard's index, and where it came from.

    Args:
        index: The index.
        fresh: Whether a sidecar that fits was there.
        sidecar: The sidecar, None if it could not be kept.
    """

    index: ShardIndex
    fresh: bool
    sidecar: Path | None


def open_index(path: str | Path, cache: Path | None = None) -> Opened:
    """The index of a shard: its sidecar if that fits the tar, else built now and kept.

    The sidecar lies beside the shard, or in the cache where that folder cannot be written. It fits while the tar's size
    and time of change are those that it was made from; otherwise the headers are read again (about 10 µs a sample).

    Args:
        path: A plain tar.
        cache: Folder for what cannot be kept beside the shard.

    Raises:
        ShardError: If the shard cannot be indexed.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); check the path", str(path)) from error
    places = [sidecar_path(path)]
    if cache is not None:
        places.append(cached_path(places[0], cache))
    earlier = None
    for place in places:
        held = _kept(place)
        if held is not None and (held.size, held.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return Opened(held, True, place)
        earlier = earlier or held
    index = build_index(path)
    if earlier is not None and earlier.fingerprint != index.fingerprint:
        _log.warning("%s: changed since it was indexed; %d samples then, %d now", path, len(earlier), len(index))
    for place in places:
        try:
            if place is not places[0]:
                place.parent.mkdir(parents=True, exist_ok=True)
            write_sidecar(index, place)
            return Opened(index, False, place)
        except OSError as error:
            refusal = error
    _log.warning("%s: its index could not be kept (%s) and is built at every start", path, refusal)
    return Opened(index, False, None)


def load_index(path: str | Path, cache: Path | None = None) -> ShardIndex:
    """The index of a shard, as ``open_index`` finds or makes it."""
    return open_index(path, cache).index
