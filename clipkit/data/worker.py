"""What a loader process runs first; apart from the data module, because a spawned one imports this and no Lightning."""

from __future__ import annotations

import signal
from typing import Any

import torch


def start_worker(_: int) -> None:
    """One thread each; signals are the parent's to handle, or Ctrl-C would lose the batches on their way."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """A set that gives whole batches needs no collating."""
    return batch
