"""Index what a run needs and no list has, once for all its ranks, before they meet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipkit.data.index_report import IndexReport
from clipkit.data.indexing import Folders, by_folder, index_locked
from clipkit.data.listing import entry_of, list_places, read_lists, split_path
from clipkit.data.locks import alone
from clipkit.data.source import Source
from clipkit.data.urls import is_remote


def prepare_indexes(sources: Sequence[Source], cache: Path | None, *, workers: int | None = None) -> None:
    """Index the shards of a run that are in no list yet, before its ranks meet.

    Every rank of every node calls it. One of those that share a disk works, in parallel; the others wait for its lists,
    without a collective that would time out. If it ends before its time, another goes on where it was.

    Args:
        sources: Of the run; remote shards are left alone.
        cache: Folder for what cannot be kept beside the shards.
        workers: Processes; None takes as many as there are cores, and fewer for a few shards.

    Raises:
        ShardError: If shards cannot be indexed; all are named.
    """
    local = [path for source in sources for path in source.shards if not is_remote(path)]
    for folders in by_folder(_unlisted(local, cache)):
        paths = [path for found in folders.values() for path in found]
        seen = _stamps(folders, cache)

        def done(paths: list[str] = paths, folders: Folders = folders) -> bool:
            nonlocal seen
            now = _stamps(folders, cache)
            if now == seen:
                return False
            seen = now
            return not _unlisted(paths, cache)

        with alone(list(folders), cache, done) as mine:
            if mine:
                report = IndexReport(cache)
                for rest in by_folder(_unlisted(paths, cache)):
                    index_locked(rest, report, workers, None)
                report.raise_refusals()


def _unlisted(paths: Iterable[str], cache: Path | None) -> list[str]:
    """The shards that no list has at their size."""
    by_folder: Folders = {}
    for path in paths:
        by_folder.setdefault(split_path(path)[0], []).append(path)
    found: list[str] = []
    for folder, shards in by_folder.items():
        lists = read_lists(folder, cache)
        found += [path for path in shards if entry_of(lists, path, split_path(path)[1]) is None]
    return found


def _stamps(folders: Iterable[str], cache: Path | None) -> list[tuple[int, int] | None]:
    """What tells whether lists were written since."""
    return [_stamp(place) for folder in folders for place in list_places(folder, cache)]


def _stamp(place: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
