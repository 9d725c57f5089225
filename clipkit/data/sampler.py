"""Which requests the workers get: the plan's batches from a position on, or validation's in plain order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from clipkit.data.dataset import Order, Request
from clipkit.data.plan import Ints, Rows


class PlanSampler(Sampler[Request]):
    """Batches of one rank.

    ``len`` is that of the whole run, while iteration yields what is left from the position: Lightning counts the steps of a
    resumed run from where they stopped.

    Args:
        order: Positions to samples.
        batch_size: Samples of a batch over all ranks.
        batches: Of the whole run.
        rank: This rank.
        world: How many ranks there are.
        position: Tells where to begin; asked when iteration starts.
        earlier: Tells how many batches of the run lie before position 0; asked with it.
        stage: The stage of a batch by its first position.
    """

    def __init__(
        self,
        order: Order,
        *,
        batch_size: int,
        batches: int,
        rank: int,
        world: int,
        position: Callable[[], int],
        earlier: Callable[[], int] = lambda: 0,
        stage: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self.batches = batches
        self.rank = rank
        self.world = world
        self.position = position
        self.earlier = earlier
        self.stage = stage

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Request]:
        before = self.earlier() * self.batch_size  # stages are counted from the run's start, not this plan's
        stop = self.batches * self.batch_size - before
        for start in range(self.position(), stop, self.batch_size):
            positions = np.arange(start + self.rank, start + self.batch_size, self.world)
            yield Request(start, self.batch_size, self.order.rows(positions), self.stage(before + start))


class InOrder:
    """Every sample of every source once, as they lie.

    Args:
        counts: Per source the samples of each shard (S,).
    """

    def __init__(self, counts: Sequence[Ints]) -> None:
        self.counts = [np.asarray(shards, np.int64) for shards in counts]
        every = np.concatenate(self.counts)
        self.starts = np.concatenate([[0], np.cumsum(every)])
        self.source = np.repeat(np.arange(len(counts)), [len(shards) for shards in self.counts])
        self.shard = np.concatenate([np.arange(len(shards)) for shards in self.counts])
        self.total = int(self.starts[-1])

    def rows(self, positions: Ints) -> Rows:
        """The samples at some positions (P,)."""
        at = np.searchsorted(self.starts, positions, side="right") - 1
        zero = np.zeros_like(positions)
        return Rows(positions, self.source[at], self.shard[at], positions - self.starts[at], zero, positions)

    def substitute(self, position: int, batch_start: int, batch_size: int, attempt: int = 0) -> Rows | None:
        """The first sample behind the batch, or further on; wraps around at the end."""
        if attempt >= self.total - 1:
            return None
        beyond = max(batch_start + batch_size - position, 1) if batch_size < self.total else 1
        place = (position + beyond + attempt) % self.total
        if place == position:
            place = (place + 1) % self.total
        found = self.rows(np.array([place]))
        return found._replace(position=np.array([position]))
