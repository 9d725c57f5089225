"""Which shards and samples a rank had in hand when something broke: for messages, never for the data themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from clipkit.data.plan import Ints
from clipkit.data.urls import is_remote, shown

if TYPE_CHECKING:
    from clipkit.data.datamodule import ShardDataModule

_MOST = 4


class WorkerDied(RuntimeError):
    """A loader process ended by itself or was killed."""


def shards_of(data: ShardDataModule, positions: Ints) -> list[str]:
    """The shards at some positions (P,) of the plan, each once, at most four and a count of the others."""
    rows = data.plan.rows(positions)
    pairs = dict.fromkeys(zip(rows.source.tolist(), rows.shard.tolist(), strict=True))
    names = [shown(data.catalogues[source].path(shard)) for source, shard in pairs]
    return names[:_MOST] + ([f"and {len(names) - _MOST} more"] if len(names) > _MOST else [])


def in_hand(data: ShardDataModule, rank: int, step: int) -> str:
    """Position, shards and first keys of a rank's part of a step of the run, from 1; every rank can tell them of every other."""
    position = (step - 1 - data.earlier_steps) * data.batch_size
    mine = np.arange(position + rank, position + data.batch_size, data.world)
    return f"position {position}, {_samples(data, mine)}"


@contextmanager
def named_worker_death(data: ShardDataModule) -> Iterator[None]:
    """Inside, a loader process that dies is told with what it may have been at.

    Raises:
        WorkerDied: In place of torch's error, which tells a process id alone.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        ahead = max(1, data.workers) * 2 + 1  # what the loader had asked for
        stop = min(data.position + ahead * data.batch_size, data.batches * data.batch_size)
        mine = np.arange(data.position + data.rank, stop, data.world)
        raise WorkerDied(
            f"rank {data.rank}: a loader process died ({str(error).splitlines()[0]}). In flight from position {data.position} on: "
            f"{_samples(data, mine)}. A kill by the system for memory shows in `dmesg`: fewer data.workers need less; "
            "the same command goes on from the last checkpoint"
        ) from error


def _samples(data: ShardDataModule, positions: Ints) -> str:
    if len(positions) == 0:
        return "nothing"
    shards = f"shards {', '.join(shards_of(data, positions))}"
    rows = data.plan.rows(positions[:_MOST])
    if any(is_remote(data.catalogues[source].path(0)) for source in rows.source.tolist()):
        return shards  # its keys would have to be fetched
    reader = copy.copy(data.dataset.reader)  # with files of its own: this may be another thread
    try:
        places = zip(rows.source.tolist(), rows.shard.tolist(), rows.sample.tolist(), strict=True)
        keys = [reader.key(*place) for place in places]
    except (OSError, ValueError):  # the shard may be what is broken
        return shards
    finally:
        reader.close()
    return f"{shards}, {len(positions)} samples, the first keys {', '.join(keys)}"
