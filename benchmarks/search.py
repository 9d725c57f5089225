"""What exact search holds in memory beyond the mapped file: unit-norm fp16 rows of width 256, 64 queries, the 10 nearest.

The peer is the plain way: all rows loaded as float32, one matrix product, ``topk``. Both give the same rows but for ties in float32.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import figure, finish, peak_growth, quick
from torch.nn.functional import normalize

from clipkit.embedding.search import top_k

WIDTH, QUERIES, K = 256, 64, 10


def write(path: Path, count: int) -> None:
    """Random unit-norm rows, written a piece at a time."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, WIDTH))
    draw = torch.Generator().manual_seed(0)
    for start in range(0, count, 50_000):
        piece = normalize(torch.randn(min(50_000, count - start), WIDTH, generator=draw), dim=1)
        rows[start : start + len(piece)] = piece.half().numpy()
    rows.flush()


def main() -> int:
    """Measure both on one file."""
    short = quick(str(__doc__).partition("\n")[0])
    count, times = (200_000, 2) if short else (1_000_000, 3)
    query = normalize(torch.randn(QUERIES, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    grown, theirs, ratios = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write(path, count)
        top_k([np.load(path, mmap_mode="r")[:1000]], query, K)  # threads and code are there
        for _ in range(times):
            found: list[torch.Tensor] = []

            def ours(found: list[torch.Tensor] = found) -> None:
                found.append(top_k([np.load(path, mmap_mode="r")], query, K)[1])

            def plain(found: list[torch.Tensor] = found) -> None:
                rows = torch.from_numpy(np.load(path)).float()
                found.append((query @ rows.T).topk(K).indices)

            started = time.perf_counter()
            grown.append(peak_growth(ours))
            middle = time.perf_counter()
            theirs.append(peak_growth(plain))
            ratios.append((time.perf_counter() - middle) / (middle - started))
            same = (found[0] == found[1]).double().mean()
            assert same > 0.99, f"only {same:.3f} of the rows found are the plain way's"
    print(f"{count:,} x {WIDTH}: ours holds {max(grown):.0f} MB, all rows as float32 {max(theirs):.0f} MB")
    figures = {"grown_mb": figure(grown, max(grown)), "plain_mb": figure(theirs), "time_ratio": figure(ratios)}
    return finish("search", peer="all rows as float32, one matrix product", figures=figures)


if __name__ == "__main__":
    sys.exit(main())
