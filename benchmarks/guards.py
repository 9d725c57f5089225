"""Non-finite numbers at 20 places, on each of two ranks: none reaches the weights, and who brought it is named; and what all guards cost.

Two gloo ranks train real towers under DDP. Pixels, word embeddings, features, the loss and gradients are spoilt at steps with sound ones between
them: a bad step must leave the bits of every weight, the next must train. ``caught`` also counts a stopped rank that is named.

``overhead`` is that of everything: one run has spikes skipped, replicas compared, a watchdog, the other has none of them, nor the guard that is
always on. To their difference comes what that run cannot show: changing the time-outs of collectives and comparing with another rank (measured
between two), and keeping the statistics of a ResNet-50's batch norms.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from common import figure, finish, quick
from overhead import InMemory, configuration, measure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipkit.batch_statistics import BatchStatistics
from clipkit.building import build_model, build_module
from clipkit.callbacks.heartbeat import Heartbeat
from clipkit.callbacks.watchdog import Limits, Watchdog
from clipkit.checkpoint import weight_hash
from clipkit.guard import Guard
from clipkit.module import Batch, CLIPModule
from clipkit.replicas import disagreement, replicated

NAN, INF = float("nan"), float("inf")
OFF = ("guard.replicas_every=0", "guard.spikes=ignore")
REPLICAS_EVERY = 50  # ten times as often as by default
ON = (f"guard.replicas_every={REPLICAS_EVERY}", "guard.spikes=skip")
LIMITS = Limits(start=600, step=300, pause=7200)
STEP_SECONDS = 0.5
Case = tuple[str, Callable[[CLIPModule], Any]]


class Step(nn.Module):
    """The training step as what DDP calls forward.

    Args:
        module: The module.
    """

    def __init__(self, module: CLIPModule) -> None:
        super().__init__()
        self.module = module
        self.factor = 1.0

    def forward(self, batch: Batch) -> Tensor:
        """The loss."""
        return self.module.training_step(batch, 0) * self.factor


def spoilt(output: Tensor, row: int, value: float) -> Tensor:
    """One number of one row replaced."""
    changed = output.clone()
    changed[row].view(-1)[row] = value
    return changed


def places(step: Step) -> list[Case]:
    """The field that is to be named (empty where features stay finite), and what spoils this rank's next step; it returns a handle."""
    towers = dict(step.module.towers.named_modules())
    pixels = next(x for x in towers.values() if isinstance(x, nn.Conv2d))
    words = next(x for x in towers.values() if isinstance(x, nn.Embedding))
    cases: list[Case] = []
    for row, value in enumerate((NAN, INF, -INF, NAN)):
        cases.append(("image", lambda _, r=row, v=value: pixels.register_forward_hook(lambda m, i, o: spoilt(o, r, v))))
    for row, value in enumerate((NAN, INF, -INF, NAN)):
        cases.append(("text", lambda _, r=row, v=value: words.register_forward_hook(lambda m, i, o: spoilt(o, r, v))))
    for value in (NAN, INF):
        cases.append(("", lambda _, v=value: step.register_forward_hook(lambda m, i, o: o * v)))
    named = [p for p in step.module.parameters() if p.requires_grad]
    for number in range(10):
        parameter = named[number * (len(named) - 1) // 9]
        value = (NAN, INF)[number % 2]
        cases.append(("", lambda _, p=parameter, v=value: p.register_hook(lambda g: g * v)))
    return cases


def train(step: nn.Module, module: CLIPModule, optimizer: Any, batch: Batch, number: int) -> tuple[bool, Any]:
    """One step; whether it left every weight's bits, and what the guard says."""
    before = weight_hash(module.state_dict())
    optimizer.zero_grad()
    step(batch).backward()
    module.configure_gradient_clipping(optimizer, 1.0)
    optimizer.step()
    return weight_hash(module.state_dict()) == before, module.guard.take(number)


def rank_job(rank: int, port: int, out: str) -> None:
    """All places on both ranks; rank 0 writes 1 for each that was caught."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), 100, ())
        module = build_module(config, build_model(config), steps=100, warmup=0, own_losses={})
    batch = InMemory(1).batch | {"position": 0}
    batch |= {"lengths": module.towers.lengths(batch)}
    whole = Step(module)
    parallel, optimizer = DistributedDataParallel(whole), module.configure_optimizers()
    found, number = [], 0
    for culprit in (0, 1):
        for field, spoil in places(whole):
            handle = spoil(module) if rank == culprit else None
            kept, said = train(parallel, module, optimizer, batch, number := number + 1)
            if handle is not None:
                handle.remove()
            names = {(who, what) for who, _, what, _ in said.culprits} if said else set()
            named = said is not None and names == ({(culprit, field)} if field else set())
            still, nothing = train(parallel, module, optimizer, batch, number := number + 1)
            found.append(int(kept and named and not still and nothing is None))
    watchdog = Watchdog(
        Path(out).parent, rank=rank, world=2, limits=LIMITS, holding=lambda *_: "", leave=lambda words: print(words)
    )
    between = between_ranks(module, Heartbeat(watchdog))
    if rank == 0:
        Path(out).write_text(json.dumps([found, between]))
    dist.destroy_process_group()


def between_ranks(module: CLIPModule, beat: Heartbeat) -> float:
    """Seconds a step of what only several ranks do: tell the watchdog and set the collectives' time-outs, and compare replicas."""
    begun = time.perf_counter()
    for step in range(10 * REPLICAS_EVERY):
        for phase in ("step", "pause", "data"):
            beat.enter(phase, step)
        if step % REPLICAS_EVERY == 0 and disagreement(replicated(module)) is not None:
            raise RuntimeError("replicas differ")
    return (time.perf_counter() - begun) / (10 * REPLICAS_EVERY)


def batch_norms() -> float:
    """Seconds of keeping a ResNet-50's running statistics and choosing between them."""
    statistics_of, times = BatchStatistics(torchvision.models.resnet50()), []
    for _ in range(50):
        begun = time.perf_counter()
        statistics_of.keep()
        statistics_of.put_back_(torch.zeros(()))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def not_a_number() -> tuple[list[bool], float]:
    """Whether each place was caught, on each rank; and what ``between_ranks`` found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found"
        mp.start_processes(rank_job, (port, str(out)), nprocs=2, start_method="fork")  # from this warm one
        found, between = json.loads(out.read_text())
        return [bool(one) for one in found], float(between)


def stopped_rank(short: bool) -> list[bool]:
    """Whether a stopped rank was named, where the other half is there."""
    if importlib.util.find_spec("hangs") is None:
        print("benchmarks/hangs.py is not here: `caught` counts numbers alone, no stopped rank")
        return []
    import hangs

    return list(hangs.stopped_rank_named(short))


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Inside, the guard that no configuration turns off is off: every step trains, whatever its gradient."""
    off: dict[str, Any] = {"see": lambda *_: torch.ones(()), "hold": lambda *_, **__: None, "take": lambda *_: None}
    with mock.patch.multiple(Guard, **off), mock.patch.object(CLIPModule, "clamp_scales", return_value=None):
        yield


@contextlib.contextmanager
def watchdog_in(folder: Path) -> Iterator[Watchdog]:
    """A watchdog of one rank, beating."""
    watchdog = Watchdog(folder, rank=0, world=1, limits=LIMITS, holding=lambda *_: "", leave=lambda words: print(words))
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()


def seconds(steps: int, *, guards: bool) -> float:
    """Median seconds of a step of a run less its bare one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if guards:
            with watchdog_in(folder) as watchdog:
                times = measure(folder, steps, ON, watchdog)
        else:
            with unguarded():
                times = measure(folder, steps, OFF)
    return statistics.median(ours for ours, _ in times) - statistics.median(bare for _, bare in times)


def main() -> int:
    """Three turns of 200 steps with and without (``--quick``: two of 100)."""
    short = quick(__doc__ or "")
    begun = time.perf_counter()
    places_caught, between = not_a_number()
    caught = [*places_caught, *stopped_rank(short)]
    print(f"{sum(caught)} of {len(caught)} caught in {time.perf_counter() - begun:.0f} s")
    torch.set_num_threads(1)
    turns, steps = (2, 100) if short else (3, 200)
    norms = batch_norms()
    costs = [seconds(steps, guards=True) - seconds(steps, guards=False) + between + norms for _ in range(turns)]
    figures = {
        "caught": figure([float(x) for x in caught], value=sum(caught) / len(caught)),
        "overhead": figure([cost / STEP_SECONDS for cost in costs]),
        "guards_us": figure([1e6 * cost for cost in costs]),
        "between_ranks_us": figure([1e6 * between]),
        "batch_norms_us": figure([1e6 * norms]),
    }
    return finish(
        "guards",
        peer=f"the same run without any guard; torch {torch.__version__}",
        figures=figures,
    )


if __name__ == "__main__":
    sys.exit(main())
