"""Index many shards in parallel: their sidecars and the lists of their folders, whoever asks for them.

``clipkit data index``, ``pack`` and the start of a run all come here, so a shard is indexed once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from clipkit.data.index import open_index
from clipkit.data.index_report import Indexed, IndexReport
from clipkit.data.listing import Entry, merge_list, split_path
from clipkit.data.locks import alone
from clipkit.data.meter import Meter
from clipkit.data.parallel import map_shards
from clipkit.data.tar import ShardError

_AT_ONCE = 128  # folders whose locks are held together: a descriptor each
_WORTH = 4  # shards for which a further process is worth its start

Folders = dict[str, list[str]]


def index_one(cache: Path | None, path: str) -> Indexed:
    """Index a shard if it is not yet indexed; an error is part of the result, for the others go on.

    Args:
        cache: Folder for a sidecar that cannot be kept beside the shard.
        path: The shard.
    """
    try:
        opened = open_index(path, cache)
    except ShardError as error:
        return Indexed(path, refusal=str(error), offset=error.offset)
    index = opened.index
    return Indexed(
        path=path,
        count=len(index),
        size=index.size,
        fingerprint=index.fingerprint,
        fields={name: int((offset >= 0).sum()) for name, (offset, _) in index.fields.items()},
        fresh=opened.fresh,
        sidecar="" if opened.sidecar is None else str(opened.sidecar),
    )


def index_shards(
    paths: Iterable[str], cache: Path | None, *, workers: int | None = None, ray: str | None = None
) -> IndexReport:
    """Index shards and enter them into the lists of their folders.

    Args:
        paths: The shards.
        cache: Folder for what cannot be kept beside the shards.
        workers: Processes; None takes as many as there are cores, and fewer for a few shards.
        ray: Address of a Ray cluster that does the work instead.

    Returns:
        What became of them; shards that cannot be indexed are in it, the others' indexes are kept.
    """
    report = IndexReport(cache)
    for folders in by_folder(paths):
        with alone(list(folders), cache):
            index_locked(folders, report, workers, ray)
    return report


def write_folder_index(folder: str | Path, cache: Path | None = None) -> Path:
    """Index every shard of a folder and list them in its ``index.json``.

    Args:
        folder: Holds the shards, ``*.tar``.
        cache: Folder for what cannot be kept in the folder.

    Returns:
        The path of ``index.json``: ``{version, shards: [{name, count, size, fingerprint}]}``, sorted by name.

    Raises:
        ShardError: If a shard cannot be indexed.
        ValueError: If the folder holds no shard.
        OSError: If the list cannot be written.
    """
    folder = Path(folder)
    shards = sorted(str(shard) for shard in folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"{folder}: holds no *.tar; name the folder of the shards")
    report = index_shards(shards, cache, workers=1)
    report.raise_refusals()
    if not report.lists:
        raise OSError(f"{folder}: index.json could not be written")
    return report.lists[0]


def by_folder(paths: Iterable[str]) -> Iterator[Folders]:
    """Shards by folder, so many folders at a time."""
    folders: Folders = {}
    for path in dict.fromkeys(paths):
        folders.setdefault(split_path(path)[0], []).append(path)
    names = sorted(folders)
    for start in range(0, len(names), _AT_ONCE):
        yield {name: folders[name] for name in names[start : start + _AT_ONCE]}


def index_locked(folders: Folders, report: IndexReport, workers: int | None, ray: str | None) -> None:
    """Index the shards of folders whose locks are held."""
    paths = [path for found in folders.values() for path in found]
    if workers is None:
        workers = min(_cores(), len(paths) // _WORTH)
    entries: dict[str, dict[str, Entry]] = {folder: {} for folder in folders}
    refused: dict[str, list[str]] = {folder: [] for folder in folders}
    with ExitStack() as shown:
        meter = None
        if len(paths) > _WORTH:
            places = next(iter(folders)) if len(folders) == 1 else f"{len(folders):,} folders"
            meter = shown.enter_context(Meter(f"indexing {len(paths):,} shards of {places or '.'}", len(paths)))
        for shard in map_shards(partial(index_one, report.cache), paths, workers=min(workers, len(paths)), ray=ray):
            folder, name = split_path(shard.path)
            report.count(shard)
            if shard.refusal:
                refused[folder].append(name)
            else:
                entries[folder][name] = Entry(
                    name=name, count=shard.count, size=shard.size, fingerprint=shard.fingerprint
                )
            if meter is not None:
                meter.advance()
    for folder in folders:
        place = merge_list(folder, entries[folder], refused[folder], report.cache)
        if place is None:
            report.unlisted.append(folder)
        else:
            report.lists.append(place)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
