"""Memory and time of a loss, forward and backward, against open_clip's on the same embeddings (N pairs of width 512, float32).

Memory is the growth of RssAnon + RssShmem at its highest, above inputs and their gradients, each measurement in a process of its own. Time is
taken in the same processes in further passes, peer and clipkit in turn. For one rank's share of 32,768 pairs on W ranks all that the rank
holds counts: gathered embeddings and their gradients too, the peer's in the shapes of ``local_loss`` with ``gather_with_grad``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from common import figure, finish, peak_growth, quick
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from clipkit import distributed
from clipkit.losses.infonce import infonce
from clipkit.losses.sigmoid import sigmoid

WIDTH, GLOBAL = 512, 32 * 1024
Step = Callable[[], Tensor]


def embeddings(pairs: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(pairs, WIDTH, generator=generator), dim=1).requires_grad_()


def step_of(name: str, pairs: int) -> Step:
    """A forward pass, ready to be run."""
    x, y = embeddings(pairs, 0), embeddings(pairs, 1)
    scale, bias = (torch.tensor(value, requires_grad=True) for value in (14.3, -10.0))
    steps: dict[str, Step] = {
        "infonce": lambda: infonce(x, y, scale),
        "infonce_peer": lambda: ClipLoss()(x, y, scale),
        "sigmoid": lambda: sigmoid(x, y, scale, bias),
        "sigmoid_peer": lambda: SigLipLoss()(x, y, scale, bias),
    }
    return steps[name]


def local_step(name: str, ranks: int, total: int) -> Step:
    """One rank's share, the other ranks' embeddings copies of its own."""
    x, y = embeddings(total // ranks, 0), embeddings(total // ranks, 1)
    scale = torch.tensor(14.3, requires_grad=True)
    if name == "local":
        return lambda: infonce(x, y, scale)

    def peer() -> Tensor:
        everyone = [part.repeat(ranks, 1) for part in (x, y)]
        first, second = scale * x @ everyone[1].T, scale * y @ everyone[0].T
        labels = torch.arange(len(x))
        return (F.cross_entropy(first, labels) + F.cross_entropy(second, labels)) / 2

    return peer


def alone_among(ranks: int) -> mock._patch_multiple:  # type: ignore[type-arg]
    """Collectives of rank 0 of ``ranks``, of the right shapes, without the others."""
    done = distributed.Pending

    def gathered(x: Tensor, sizes: list[int]) -> distributed.Pending[Tensor]:
        out = x.repeat(ranks, *[1] * (x.ndim - 1))
        return done(None, lambda: out)

    def scattered(x: Tensor, sizes: list[int]) -> distributed.Pending[Tensor]:
        return done(None, lambda: x[: sizes[0]].clone())

    return mock.patch.multiple(
        distributed,
        world_size=lambda: ranks,
        rank=lambda: 0,
        gather_sizes=lambda rows, device=None: [rows] * ranks,
        all_gather_rows_async=gathered,
        reduce_scatter_rows_async=scattered,
        all_reduce_=lambda x, op="sum": x,
    )


def child(name: str, pairs: int, ranks: int, repetitions: int) -> None:
    """Measure in this process and print bytes and seconds."""
    if ranks > 1:
        with alone_among(ranks):
            measure(lambda count: local_step(name, ranks, count), pairs, pairs // ranks, 0)
    else:
        measure(lambda count: step_of(name, count), pairs, pairs, repetitions)


def measure(make: Callable[[int], Step], pairs: int, rows: int, repetitions: int) -> None:
    make(64)().backward()  # type: ignore[no-untyped-call]  # libraries take their memory once
    step = make(pairs)
    grown = peak_growth(lambda: step().backward()) * 2**20 - 2 * rows * WIDTH * 4  # type: ignore[no-untyped-call]
    print(json.dumps({"bytes": grown}), flush=True)
    for _ in range(repetitions):
        sys.stdin.readline()
        started = time.perf_counter()
        step().backward()  # type: ignore[no-untyped-call]
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


class Measured:
    """A measurement in a process of its own.

    Args:
        name: What is measured.
        pairs: Of the global batch.
        ranks: Of which one is measured.
        repetitions: How often its time is taken.
    """

    def __init__(self, name: str, pairs: int, ranks: int = 1, repetitions: int = 0) -> None:
        command = [sys.executable, __file__, "--child", name, str(pairs), str(ranks), str(repetitions)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.bytes = max(self._read("bytes"), 1)

    def seconds(self) -> float:
        """Of one more pass."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read("seconds")

    def _read(self, key: str) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a measurement ended with code {self.process.wait()}")
        return float(json.loads(line)[key])


def compare(name: str, pairs: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Memory and time of a loss and of its peer."""
    ours, theirs = Measured(name, pairs, 1, repetitions), Measured(f"{name}_peer", pairs, 1, repetitions)
    times = [(theirs.seconds(), ours.seconds()) for _ in range(repetitions)]
    return {
        f"{name}_memory_ratio": figure([theirs.bytes / ours.bytes]),
        f"{name}_time_ratio": figure([peer / own for peer, own in times]),
        f"{name}_mib": figure([ours.bytes / 2**20]),
        f"{name}_peer_mib": figure([theirs.bytes / 2**20]),
        f"{name}_s": figure([own for _, own in times]),
        f"{name}_peer_s": figure([peer for peer, _ in times]),
    }


def main() -> int:
    """N = 16,384 with five repetitions (``--quick``: 8,192 with three)."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], *(int(value) for value in sys.argv[3:6]))
        return 0
    pairs, repetitions = (8192, 3) if quick(__doc__ or "") else (16384, 5)
    figures = compare("infonce", pairs, repetitions) | compare("sigmoid", pairs, repetitions)
    for key, ranks in (("local_memory_ratio", 8), ("local_memory_ratio_64", 64)):
        ours, theirs = Measured("local", GLOBAL, ranks), Measured("local_peer", GLOBAL, ranks)
        figures[key] = figure([theirs.bytes / ours.bytes])
    return finish("loss_memory", peer="open_clip ClipLoss and SigLipLoss", figures=figures)


if __name__ == "__main__":
    sys.exit(main())
