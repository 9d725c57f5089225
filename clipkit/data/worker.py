"""What a loader process runs first; apart from the data module, because a spawned one imports this and no Lightning."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader

from clipkit.processes import die_with_parent


def start_worker(_: int) -> None:
    """One thread each; signals are the parent's to handle, or Ctrl-C would lose the batches on their way; no parent, no worker."""
    die_with_parent()
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def kill_left_over() -> None:
    """At the end of the program, end what a loader that nobody ended left: Python sends SIGTERM, which is ignored, and waits for ever."""
    for child in multiprocessing.active_children():
        if child.daemon and child.pid is not None:
            child.kill()


# of the process that starts loaders alone; torch registers its own end of loaders later, so that it comes first
atexit.register(kill_left_over)


def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """A set that gives whole batches needs no collating."""
    return batch


def end_workers(loaders: Iterable[DataLoader[Any]]) -> None:
    """End the processes of loaders that are not needed any more; one that is waiting for a server hears no signal but this."""
    for loader in loaders:
        iterator: Any = loader._iterator
        if iterator is None or not hasattr(iterator, "_shutdown_workers"):
            continue
        iterator._shutdown_workers()  # asks, and waits a few seconds for each
        for worker in iterator._workers:
            if worker.is_alive():
                worker.kill()
                worker.join()
        loader._iterator = None
