"""How long this rank waits for others in collectives, marked on the clock of the device that computes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

Mark = Any  # seconds on a CPU, an event on a GPU


def mark(*, gpu: bool) -> Mark:
    """This moment: on a GPU when its stream gets here, and the process does not wait for that."""
    if not gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds(start: Mark, end: Mark) -> float:
    """From one mark to another; on a GPU it waits until the second has come."""
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


class Waits:
    """The waits of a step, once somebody asked for them.

    Args:
        gpu: Whether to mark them on the GPU's stream.
    """

    current: Waits | None = None
    """Where waits are noted now; None while nobody asks."""

    def __init__(self, *, gpu: bool) -> None:
        self.gpu = gpu
        self.start = mark(gpu=gpu)
        self.computing: Mark | None = None
        self.spans: list[tuple[Mark, Mark]] = []

    def compute(self) -> None:
        """The forward begins. What was until here is a wait: DDP shares its buffers first."""
        if self.computing is None:
            self.computing = mark(gpu=self.gpu)

    def before(self) -> float:
        """Seconds of the forward until the first wait in it, 0 where there was neither."""
        return seconds(self.computing, self.spans[0][0]) if self.spans and self.computing is not None else 0.0

    def total(self) -> float:
        """Seconds of all waits."""
        first = 0.0 if self.computing is None else seconds(self.start, self.computing)
        return first + sum(seconds(*span) for span in self.spans)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Inside, this rank waits for others."""
    waits = Waits.current
    if waits is None or waits.computing is None:
        yield
        return
    start = mark(gpu=waits.gpu)
    yield
    waits.spans.append((start, mark(gpu=waits.gpu)))
