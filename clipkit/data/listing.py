"""``index.json``, the list of a folder's shards with their counts: by it a run starts without opening a sidecar.

It lies in the folder, or in the cache where that cannot be written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from clipkit.config.json_text import parse_json
from clipkit.data.atomic import write_atomically
from clipkit.data.index import VERSION, cached_path

NAME = "index.json"
_MOST = 1 << 60
_KINDS = {"name": str, "count": int, "size": int, "fingerprint": str}


class Entry(TypedDict):
    """One shard of the list.

    Args:
        name: Its file name.
        count: Its samples.
        size: Its bytes; at another size the entry no longer counts.
        fingerprint: Of its index.
    """

    name: str
    count: int
    size: int
    fingerprint: str


Lists = Sequence[Mapping[str, Entry]]
"""The lists of one folder, the folder's own first, each by name."""


def split_path(path: str) -> tuple[str, str]:
    """The folder and the name of a shard."""
    folder, _, name = path.rpartition(os.sep)
    return folder, name


def list_places(folder: str, cache: Path | None) -> list[Path]:
    """Where a folder's list may lie, the best first."""
    own = Path(folder or ".") / NAME
    return [own] if cache is None else [own, cached_path(own, cache)]


def read_lists(folder: str, cache: Path | None) -> Lists:
    """The lists of a folder; one that is missing, damaged or of another version is empty."""
    return [_read(place) for place in list_places(folder, cache)]


def _read(place: Path) -> dict[str, Entry]:
    try:
        held = parse_json(place.read_text(encoding="utf-8"))
        if held["version"] != VERSION:
            return {}
        return {entry["name"]: entry for entry in held["shards"] if _is_entry(entry)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_entry(entry: object) -> bool:
    """Whether it can be one: the list may come with the shards from a stranger."""
    if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in _KINDS.items()):
        return False
    return all(0 <= entry[name] < _MOST for name in ("count", "size"))


def size_of(path: str) -> int | None:
    """Bytes of a file, None if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def entry_of(lists: Lists, path: str, name: str) -> Entry | None:
    """The entry of a shard, if one list has it at the size that it has now."""
    found = [held[name] for held in lists if name in held]
    if not found:
        return None
    size = size_of(path)
    return next((entry for entry in found if entry["size"] == size), None)


def merge_list(folder: str, entries: Mapping[str, Entry], refused: Sequence[str], cache: Path | None) -> Path | None:
    """Enter shards into the list of their folder; what it says of others stays while they are there at their size.

    The caller holds the folder's lock.

    Args:
        folder: Of the shards.
        entries: What is known of them now, by name.
        refused: Names of shards that have no index; their entries go.
        cache: Folder for a list that cannot lie beside the shards.

    Returns:
        Where the list lies, None if it could not be written.
    """
    own, *others = list_places(folder, cache)
    for place in (own, *others):
        before = _read(place)
        kept = {
            name: entry
            for name, entry in before.items()
            if name not in entries and name not in refused and size_of(os.path.join(folder, name)) == entry["size"]
        }
        merged = {**kept, **entries}
        if merged == before:  # also of a folder that nobody may write to
            return place
        shards = [merged[name] for name in sorted(merged)]
        text = json.dumps({"version": VERSION, "shards": shards}, indent=1)
        try:
            if place is not own:
                place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
            return place
        except OSError:
            continue
    return None
