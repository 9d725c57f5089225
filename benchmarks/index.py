"""What it costs to index a tar: processor time a sample, against listing the same tar with ``tarfile``."""

from __future__ import annotations

import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import figure, finish, quick
from photos import SHARD, photographs, write_shards

from clipkit.data.index import build_index


def ours(path: str) -> int:
    """Samples that clipkit indexes."""
    return len(build_index(path))


def theirs(path: str) -> int:
    """Samples by ``tarfile``: where each member of a key lies."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            found.setdefault(key, {})[extension] = member.offset_data, member.size
    return len(found)


def seconds(index: Callable[[str], int], paths: list[str]) -> float:
    """Processor time of one sample."""
    started = time.process_time()
    count = sum(index(path) for path in paths)
    return (time.process_time() - started) / count


def main() -> int:
    """Compare medians of 25 passes over 4 shards (``--quick``: 9 over 2)."""
    shards, repetitions = (2, 9) if quick(__doc__ or "") else (4, 25)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), photographs(200), shards)
        if {ours(path) for path in paths} != {SHARD} or {theirs(path) for path in paths} != {SHARD}:
            raise AssertionError("the two find other numbers of samples")
        pairs = [(seconds(theirs, paths), seconds(ours, paths)) for _ in range(repetitions)]
    peer, own = (figure([pair[i] * 1e6 for pair in pairs]) for i in (0, 1))
    ratio = figure([slow / fast for slow, fast in pairs], value=peer["value"] / own["value"])
    version = ".".join(map(str, sys.version_info[:3]))
    return finish(
        "index",
        peer=f"tarfile of Python {version}",
        figures={"cpu_ratio": ratio, "clipkit_us": own, "tarfile_us": peer},
    )


if __name__ == "__main__":
    sys.exit(main())
