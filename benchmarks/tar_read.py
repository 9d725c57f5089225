"""What it costs to read the samples of tars in shuffled order: processor time a sample, all members as bytes.

Clipkit reads in the order of its plan, the plan included. The peer is webdataset's own pipeline: shards shuffled, then samples in a buffer of
1,000. The files lie in the page cache for both. That both give the same bytes is held in a pass of its own.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import webdataset as wds
from common import figure, finish, quick
from photos import SHARD, photographs, write_shards

from clipkit.data.catalogue import open_catalogue
from clipkit.data.plan import Plan
from clipkit.data.reader import ShardReader
from clipkit.data.source import Source

EXTENSIONS = ("jpg", "json", "txt")
BATCH = 256
Sample = tuple[str, dict[str, bytes]]


def clipkit_samples(paths: list[str], seed: int) -> Iterator[Sample]:
    """One epoch in the plan's order."""
    source = Source("pairs", tuple(paths), fields={"image": ("jpg",), "text": ("txt",), "label": ("json.key",)})
    held = open_catalogue(source, None)
    plan = Plan([held.counts], [1.0], seed)
    reader = ShardReader([held], [frozenset(EXTENSIONS)], None)
    for start in range(0, plan.epoch_samples, BATCH):
        rows = plan.rows(np.arange(start, min(start + BATCH, plan.epoch_samples)))
        for shard, sample in zip(rows.shard.tolist(), rows.sample.tolist(), strict=True):
            yield reader.key(0, shard, sample), reader.members(0, shard, sample, 1 << 26)
    reader.close()


def webdataset_samples(paths: list[str], seed: int) -> Iterator[Sample]:
    """One epoch, shards and samples shuffled."""
    for sample in wds.WebDataset(paths, shardshuffle=len(paths), seed=seed, empty_check=False).shuffle(1000):
        yield sample["__key__"], sample


def seconds(samples: Callable[[list[str], int], Iterator[Sample]], paths: list[str], seed: int) -> float:
    """Processor time of one sample, over an epoch."""
    count, started = 0, time.process_time()
    for _ in samples(paths, seed):
        count += 1
    return (time.process_time() - started) / count


def digests(samples: Iterator[Sample]) -> dict[str, bytes]:
    """A hash of each sample's members."""
    return {
        key: b"".join(hashlib.blake2b(members[name], digest_size=8).digest() for name in EXTENSIONS)
        for key, members in samples
    }


def main() -> int:
    """Compare medians over 15 epochs of 8,000 samples (``--quick``: 7 of 4,000)."""
    shards, repetitions = (2, 7) if quick(__doc__ or "") else (4, 15)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), photographs(SHARD // 2), shards)
        ours, theirs = digests(clipkit_samples(paths, 0)), digests(webdataset_samples(paths, 0))
        whole = len(ours) > shards * SHARD - 64  # an epoch of ours leaves out a remainder, of another one each time
        if not whole or any(theirs[key] != digest for key, digest in ours.items()):
            raise AssertionError(f"{len(ours)} and {len(theirs)} samples: some are missing or differ")
        pairs = [
            (seconds(webdataset_samples, paths, seed), seconds(clipkit_samples, paths, seed))
            for seed in range(repetitions)
        ]
    peer, own = (figure([pair[i] * 1e6 for pair in pairs]) for i in (0, 1))
    ratio = figure([theirs / ours for theirs, ours in pairs], value=peer["value"] / own["value"])
    figures = {"cpu_ratio": ratio, "clipkit_us": own, "webdataset_us": peer}
    return finish("tar_read", peer=f"webdataset {wds.__version__}", figures=figures)


if __name__ == "__main__":
    sys.exit(main())
