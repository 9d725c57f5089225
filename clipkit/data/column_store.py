"""Columns of shards, kept in their sidecars ``NAME.tar.idx.npz`` beside the index; no part of its fingerprint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data.atomic import write_atomically
from clipkit.data.columns import BUILT_IN, Column, Members, Wanted, json_keys, values
from clipkit.data.index import ShardIndex, cached_path, load_index, sidecar_path
from clipkit.data.npz import read_npz
from clipkit.data.parallel import map_shards

_PREFIX = "column/"  # no field's name holds a slash
_STAMP = ("tar_size", "tar_mtime_ns")
_POOLED = 16  # more shards than these are read by several processes

Columns = dict[str, Column]


def read_columns(path: str, wanted: Iterable[Wanted], cache: Path | None) -> Columns:
    """Columns of a shard by the names under which they are stored, each (N,).

    Those that its sidecar lacks are read from the shard (about 40 µs a sample where its JSON is read) and put there, or into
    the cache's copy of it where the shard's folder cannot be written.

    Args:
        path: The shard.
        wanted: The columns.
        cache: Folder for sidecars that cannot be kept beside the shards.

    Raises:
        ShardError: If the shard cannot be read.
    """
    columns = {column.stored: column for column in wanted}
    found = _kept(path, list(columns), cache)
    lacking = [column for name, column in columns.items() if name not in found]
    if lacking:
        index = load_index(path, cache)
        new = _gathered(path, index, lacking)
        _keep(path, index, new, cache)
        found |= new
    return found


def _gathered(path: str, index: ShardIndex, lacking: Sequence[Wanted]) -> Columns:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rows = [values(Members(fd, path, index, number), lacking) for number in range(len(index))]
    finally:
        os.close(fd)
    gathered: Columns = {}
    for column, numbers in zip(lacking, zip(*rows, strict=True), strict=True):
        gathered[column.stored] = np.array(numbers, np.int64) if column.hashed else np.array(numbers, np.float64)
    return gathered


def _places(path: str, cache: Path | None) -> list[Path]:
    beside = sidecar_path(path)
    return [beside] if cache is None else [beside, cached_path(beside, cache)]


def _sidecar(place: Path, path: str, names: Sequence[str] | None) -> dict[str, Any]:
    """Arrays of a sidecar that fits its shard: all of them, or the columns of some names that it has; else none."""
    status = os.stat(path)
    try:
        made = read_npz(place, _STAMP.__contains__)
        if tuple(int(made[name]) for name in _STAMP) != (status.st_size, status.st_mtime_ns):
            return {}
        if names is None:
            return read_npz(place)
        found = read_npz(place, {_PREFIX + name for name in names}.__contains__)
        return {name.removeprefix(_PREFIX): array for name, array in found.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # there is none, or what is wrong with it is said where the index is read


def _kept(path: str, names: list[str], cache: Path | None) -> Columns:
    found: Columns = {}
    for place in _places(path, cache):
        lacking = [name for name in names if name not in found]
        found |= _sidecar(place, path, lacking) if lacking else {}
    return {
        name: column for name, column in found.items() if column.dtype in (np.float64, np.int64) and column.ndim == 1
    }


def _keep(path: str, index: ShardIndex, new: Columns, cache: Path | None) -> None:
    held = {
        name: array for place in reversed(_places(path, cache)) for name, array in _sidecar(place, path, None).items()
    }
    if "offset" not in held:  # nowhere to keep an index, as its reader has said
        return
    held |= {_PREFIX + name: column for name, column in new.items() if len(column) == len(index)}
    for place in _places(path, cache):
        try:
            write_atomically(place, lambda file: np.savez(file, allow_pickle=False, **held))
            return
        except OSError:
            continue


def _gather(path: str, wanted: tuple[Wanted, ...], cache: Path | None) -> None:
    read_columns(path, wanted, cache)


def gather(shards: Sequence[str], wanted: Sequence[Wanted], cache: Path | None) -> None:
    """Have the columns of many shards in their sidecars, by several processes where there is much to read."""
    if not wanted or len(shards) <= _POOLED:
        return  # each shard's are read when it is asked for
    names = [column.stored for column in wanted]
    if all(_kept(shards[number], names, cache).keys() >= set(names) for number in (len(shards) // 2, -1)):
        return
    workers = min(8, os.cpu_count() or 1)
    for _ in map_shards(partial(_gather, wanted=tuple(wanted), cache=cache), shards, workers=workers):
        pass


def known_names(path: str, cache: Path | None, *, numbers: bool) -> list[str]:
    """Names of columns: those of numbers that a filter may use, or keys of the JSON that may tell a class; by the first samples."""
    own = list(BUILT_IN) if numbers else []
    index = load_index(path, cache)
    with_json = np.flatnonzero(index.fields["json"][0] >= 0).tolist() if "json" in index.fields else []
    if not with_json:
        return own
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        keys = dict.fromkeys(
            key for at in with_json[:20] for key in json_keys(Members(fd, path, index, at), numbers=numbers)
        )
    finally:
        os.close(fd)
    return [*own, *(key for key in list(keys)[:50] if key not in own)]
