"""A run that is watched: its watchdog begins once the run folder is a run's, and ends with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from clipkit import distributed
from clipkit.callbacks.watchdog import Limits, Watchdog
from clipkit.data.in_flight import in_hand
from clipkit.data.worker import kill_left_over
from clipkit.launch import leave_word
from clipkit.running import Run


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Inside, another rank that hangs is seen; one rank alone has nobody to watch. All ranks enter together."""
    world = distributed.world_size()
    if world == 1:
        yield
        return
    distributed.on_rank_0(lambda: Watchdog.clear(run.folder))
    allowed = run.config.trainer.timeouts
    limits = Limits(allowed.start.value, allowed.step.value, allowed.pause.value)
    holding = partial(in_hand, run.data)
    run.watchdog = Watchdog(
        run.folder, rank=distributed.rank(), world=world, limits=limits, holding=holding, leave=_leave
    )
    run.watchdog.start()
    try:
        yield
    finally:
        run.watchdog.stop()


def _leave(message: str) -> None:
    """End this process from whatever thread; its main thread waits for somebody who will not come."""
    if message:
        leave_word(1, f"error: {message}")
        print(f"error: {message}", file=sys.stderr, flush=True)
    kill_left_over()
    os._exit(1)
