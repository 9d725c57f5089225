"""What a source holds, known before any sample is read: samples and fingerprint of each shard."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data.index import VERSION, load_index
from clipkit.data.node_cache import NodeCache
from clipkit.data.remote_counts import remote_counts
from clipkit.data.source import Source
from clipkit.data.urls import is_remote


@dataclass(frozen=True)
class Catalogue:
    """A source's shards.

    Args:
        paths: Of the shards (S,), bytes: arrays, not lists, so that forked workers share the memory.
        counts: Samples of each (S,).
        fingerprints: Of each (S,), bytes.
    """

    paths: NDArray[np.bytes_]
    counts: NDArray[np.int64]
    fingerprints: NDArray[np.bytes_]

    def path(self, shard: int) -> str:
        """The path of a shard."""
        return os.fsdecode(bytes(self.paths[shard]))

    @property
    def fingerprint(self) -> str:
        """Samples, and a 128-bit hash of the shards' fingerprints in order; paths do not enter."""
        digest = hashlib.blake2b(b"\n".join(bytes(mark) for mark in self.fingerprints), digest_size=16)
        return f"{int(self.counts.sum())}-{digest.hexdigest()}"


def _listed(folder: str) -> dict[str, dict[str, Any]]:
    """Entries of a folder's ``index.json`` by name; none if it is missing or damaged."""
    try:
        listed = json.loads((Path(folder) / "index.json").read_text())
        if listed["version"] != VERSION:
            return {}
        return {
            str(entry["name"]): entry for entry in listed["shards"] if {"count", "size", "fingerprint"} <= set(entry)
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def open_catalogue(source: Source, cache: Path | None, node_cache: NodeCache | None = None) -> Catalogue:
    """Count a source's samples: by the folder's ``index.json`` where it lists the shard at its size, else by its index.

    Remote shards are counted by what lies beside them (``remote_counts``); none is fetched.

    Args:
        source: The source.
        cache: Folder for sidecars that cannot be kept beside the shards.
        node_cache: Where remote shards are kept; None makes one in ``cache``.

    Raises:
        ShardError: If a shard is missing or cannot be indexed.
        ValueError: If there are no counts for a remote shard.
    """
    folders: dict[str, dict[str, dict[str, Any]]] = {}
    # filled in place: small objects that stay alive between those of a large index.json would pin all its memory
    counts = np.empty(len(source.shards), np.int64)
    fingerprints = np.empty(len(source.shards), "S56")  # a size of at most 20 digits and a hash of 32
    remote = [path for path in source.shards if is_remote(path)]
    counted = iter(remote_counts(remote, node_cache or remote_cache(cache)) if remote else ())
    for number, path in enumerate(source.shards):
        if is_remote(path):
            counts[number], mark = next(counted)
            fingerprints[number] = mark.encode()
            continue
        folder, _, name = path.rpartition(os.sep)
        if folder not in folders:
            folders[folder] = _listed(folder)
        entry = folders[folder].get(name)
        if entry is not None and _size(path) == entry["size"]:
            # a shard rewritten at the same size shows when a worker opens it: its fingerprint is compared then
            counts[number], fingerprints[number] = entry["count"], entry["fingerprint"].encode()
        else:
            index = load_index(path, cache)
            counts[number], fingerprints[number] = len(index), index.fingerprint.encode()
    paths = np.array([os.fsencode(path) for path in source.shards], np.bytes_)
    return Catalogue(paths, counts, fingerprints)


def remote_cache(cache: Path | None) -> NodeCache:
    """The cache of remote shards in a cache folder.

    Raises:
        ValueError: If there is no folder.
    """
    if cache is None:
        raise ValueError("remote shards are kept in a cache folder and none was given; pass cache=")
    return NodeCache(cache)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
