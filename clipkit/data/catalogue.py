"""What a source holds, known before any sample is read: samples and fingerprint of each shard."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.chosen import Chosen
from clipkit.data.index import load_index
from clipkit.data.listing import Lists, entry_of, read_lists, split_path
from clipkit.data.node_cache import NodeCache
from clipkit.data.remote_counts import remote_counts
from clipkit.data.selection import choose
from clipkit.data.source import Source
from clipkit.data.urls import is_remote


@dataclass(frozen=True)
class Catalogue:
    """A source's shards.

    Args:
        paths: Of the shards (S,), bytes: arrays, not lists, so that forked workers share the memory.
        counts: Samples of each (S,).
        fingerprints: Of each (S,), bytes.
        chosen: Which of the samples are planned; None plans each once.
    """

    paths: NDArray[np.bytes_]
    counts: NDArray[np.int64]
    fingerprints: NDArray[np.bytes_]
    chosen: Chosen | None = None

    @property
    def planned(self) -> NDArray[np.int64]:
        """Samples of each shard that are planned, repeats included (S,)."""
        return self.counts if self.chosen is None else self.chosen.counts

    def path(self, shard: int) -> str:
        """The path of a shard."""
        return os.fsdecode(bytes(self.paths[shard]))

    @property
    def fingerprint(self) -> str:
        """Samples, and a 128-bit hash of the shards' fingerprints in order; paths do not enter."""
        digest = hashlib.blake2b(b"\n".join(bytes(mark) for mark in self.fingerprints), digest_size=16)
        return f"{int(self.counts.sum())}-{digest.hexdigest()}"


def open_catalogue(source: Source, cache: Path | None, node_cache: NodeCache | None = None) -> Catalogue:
    """Count a source's samples: by the folder's ``index.json`` where it lists the shard at its size, else by its index.

    Remote shards are counted by what lies beside them (``remote_counts``); none is fetched.

    Args:
        source: The source.
        cache: Folder for sidecars that cannot be kept beside the shards.
        node_cache: Where remote shards are kept; None makes one in ``cache``.

    Raises:
        ShardError: If a shard is missing or cannot be indexed.
        ValueError: If the source's selection keeps nothing, or asks for what is not there, or there are no counts for a remote shard.
    """
    folders: dict[str, Lists] = {}
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
        folder, name = split_path(path)
        if folder not in folders:
            folders[folder] = read_lists(folder, cache)
        entry = entry_of(folders[folder], path, name)
        if entry is not None:
            # a shard rewritten at the same size shows when a worker opens it: its fingerprint is compared then
            counts[number], fingerprints[number] = entry["count"], entry["fingerprint"].encode()
        else:
            index = load_index(path, cache)
            counts[number], fingerprints[number] = len(index), index.fingerprint.encode()
    paths = np.array([os.fsencode(path) for path in source.shards], np.bytes_)
    return Catalogue(paths, counts, fingerprints, choose(source, counts, fingerprints, cache))


def remote_cache(cache: Path | None) -> NodeCache:
    """The cache of remote shards in a cache folder.

    Raises:
        ValueError: If there is no folder.
    """
    if cache is None:
        raise ValueError("remote shards are kept in a cache folder and none was given; pass cache=")
    return NodeCache(cache)
