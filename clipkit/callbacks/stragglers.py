"""Who is slow, and in what: data, compute and communication time of every rank, gathered once a window.

A slow rank shows in the others: they wait for it in the first collective of the step, where the loss gathers features. So a rank's own time
is what it takes until it gets there, waiting for data and computing the towers' forward; what follows on is common to all. A rank whose own
time is like the others', but which waits longer than they do, gets their data late: its connection is slow.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed
from clipkit.callbacks.metrics import MetricsLog
from clipkit.callbacks.say import say
from clipkit.module import CLIPModule
from clipkit.waits import Waits

SLOW = 0.7  # of the others' median, as NVIDIA's resiliency extension has it
NOTABLE = 0.05  # of a step: less than that is nobody's loss
WINDOWS = 2  # in a row
CURES = {
    "data": "look at its disk, its network share and data.workers",
    "compute": "look at its GPU's clocks and temperature, and at what else runs on that machine",
    "communication": "look at its network link",
}


@dataclass(frozen=True)
class RankTime:
    """Seconds a step of one rank.

    Args:
        data: Waiting for the loader.
        compute: The towers' forward, up to the first collective.
        communication: Waiting in the loss's collectives.
        host: The machine.
    """

    data: float
    compute: float
    communication: float
    host: str = ""


@dataclass(frozen=True)
class Slow:
    """A rank that the others wait for.

    Args:
        rank: Which.
        cause: ``data``, ``compute`` or ``communication``.
        score: The others' median over its own time, below ``SLOW``.
        own: Its seconds a step of that cause.
        others: The others' median of it.
    """

    rank: int
    cause: str
    score: float
    own: float
    others: float


def slow_rank(times: Sequence[RankTime], step: float) -> Slow | None:
    """The rank that is slowest by far, if one is.

    Args:
        times: By rank (W).
        step: Seconds of a whole step.

    Example:
        >>> found = slow_rank([RankTime(0.0, 0.1, 0.2), RankTime(0.2, 0.1, 0.0), RankTime(0.0, 0.1, 0.2)], step=0.5)
        >>> found.rank, found.cause, round(found.score, 2)
        (1, 'data', 0.33)
    """
    own = [time.data + time.compute for time in times]
    found = _outlier(own, step)
    if found is not None:
        excess = {cause: _excess([getattr(time, cause) for time in times], found) for cause in ("data", "compute")}
        cause = max(excess, key=lambda name: excess[name])
    else:
        found, cause = (
            _outlier([time.data + time.compute + time.communication for time in times], step),
            "communication",
        )
    if found is None:
        return None
    values = [getattr(time, cause) for time in times]
    whole = own if cause != "communication" else [a + time.communication for a, time in zip(own, times, strict=True)]
    return Slow(found, cause, _others(whole, found) / whole[found], values[found], _others(values, found))


def _others(values: Sequence[float], rank: int) -> float:
    return median(value for other, value in enumerate(values) if other != rank)


def _excess(values: Sequence[float], rank: int) -> float:
    return values[rank] - _others(values, rank)


def _outlier(values: Sequence[float], step: float) -> int | None:
    worst = max(range(len(values)), key=values.__getitem__)
    slow = _others(values, worst) < SLOW * values[worst] and _excess(values, worst) > NOTABLE * step
    return worst if slow else None


def _computing(*_: Any) -> None:
    if Waits.current is not None:
        Waits.current.compute()


class Stragglers(Callback):
    """Measure each rank and name a slow one. Stands before the metrics, which log what it finds.

    Args:
        every: Steps of a logging window.
        steps: Steps of the whole run.
        metrics: Knows when the last step ended.
        figures: Filled at a window's end with ``train/rank_seconds/data``, ``.../compute`` and ``.../communication``: seconds a step, a list by
            rank.
    """

    def __init__(self, *, every: int, steps: int, metrics: MetricsLog, figures: dict[str, Any]) -> None:
        self.every = every
        self.steps = steps
        self.metrics = metrics
        self.figures = figures
        self._data = 0.0
        self._waits: list[Waits] = []
        self._window_start = 0.0
        self._hook: Any = None
        self._seen: list[tuple[int, str] | None] = []
        self._named: tuple[int, str] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a window."""
        self._window_start = time.perf_counter()
        assert isinstance(pl_module, CLIPModule)
        self._hook = pl_module.towers.register_forward_pre_hook(_computing)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is here: the wait for it is over."""
        if trainer.world_size == 1:
            return
        self._data += time.perf_counter() - self.metrics.step_end
        Waits.current = Waits(gpu=pl_module.device.type == "cuda")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the step by; at the end of a window gather what all ranks have."""
        if Waits.current is None:
            return
        self._waits.append(Waits.current)
        Waits.current = None
        step = trainer.global_step
        if step % self.every == 0 or step == self.steps:
            self._look(step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note no more waits."""
        Waits.current = None
        if self._hook is not None:
            self._hook.remove()

    def _look(self, step: int) -> None:
        now, count = time.perf_counter(), len(self._waits)
        compute, waited = sum(waits.before() for waits in self._waits), sum(waits.total() for waits in self._waits)
        mine = [self._data / count, compute / count, waited / count, socket.gethostname()]
        times = [RankTime(*values) for values in distributed.gather_json(mine)]
        whole = (now - self._window_start) / count
        self._waits, self._data, self._window_start = [], 0.0, now
        for cause in ("data", "compute", "communication"):
            self.figures[f"train/rank_seconds/{cause}"] = [round(getattr(time, cause), 6) for time in times]
        found = slow_rank(times, whole)
        self._seen = [*self._seen, None if found is None else (found.rank, found.cause)][-WINDOWS:]
        if len(self._seen) < WINDOWS or len(set(self._seen)) > 1 or self._seen[-1] == self._named:
            return
        self._named = self._seen[-1]
        if found is not None:
            say(
                f"warning: step {step}: rank {found.rank} ({times[found.rank].host}) is slow in {found.cause}: {found.own * 1e3:.0f} ms a step, "
                f"the others {found.others * 1e3:.0f} ms (score {found.score:.2f}), and all wait for it; {CURES[found.cause]}"
            )
