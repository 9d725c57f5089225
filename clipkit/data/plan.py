"""The order of training as a pure function: position to (source, shard, sample), with nothing to remember but the seed.

Mixing: positions come in blocks of 1,024; in each block every source has its exact share, in a drawn order. Within a
source each epoch draws an order of the shards, a rotation of that axis of samples, cuts it into C equal lanes, and
shuffles every lane in windows; the source's p-th sample is slot ``p // C`` of lane ``p % C``. Batch size, ranks and
workers do not enter. No array is as long as an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.data.draws import below, permutation

BLOCK = 1024
WINDOW = 8192
_MOST_LANES = 64
_MIX, _SHARDS, _ROTATION, _SLOTS = range(4)  # what a draw is for, after the seed in its key

Ints = NDArray[np.int64]


class Rows(NamedTuple):
    """Planned samples, each field (P,).

    Args:
        position: Place in the run.
        source: Index of the source.
        shard: Index of the shard in its source.
        sample: Index of the sample among those of its shard that are planned.
        epoch: How often the source was gone through before.
        id: Stable over epochs: the planned samples of all sources numbered in the order of their lists; each copy of a
            repeated sample has its own.
    """

    position: Ints
    source: Ints
    shard: Ints
    sample: Ints
    epoch: Ints
    id: Ints

    def take(self, rows: slice | Ints) -> Rows:
        """Some of the rows."""
        return Rows(*(column[rows] for column in self))


@lru_cache(maxsize=64)
def _block(seed: int, block: int, counts: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Per slot of a block its source, and how many slots before it have that source."""
    source = np.repeat(np.arange(len(counts)), counts)[permutation(BLOCK, seed, _MIX, block)]
    rank = np.empty(BLOCK, np.int64)
    for index, count in enumerate(counts):
        rank[source == index] = np.arange(count)
    return source, rank


@lru_cache(maxsize=1024)
def _window(size: int, *key: int) -> NDArray[np.int32]:
    return permutation(size, *key).astype(np.int32)


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """How many of a block's 1,024 positions each source has, by largest remainder.

    Args:
        weights: Positive, in any unit.

    Raises:
        ValueError: If a weight is not positive, or so small that its source would never be seen.
    """
    total = sum(weights)
    if min(weights) <= 0 or not np.isfinite(total):
        raise ValueError(f"weights {list(weights)}: every one must be positive and finite; leave out a source instead")
    quotas = [BLOCK * weight / total for weight in weights]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - quotas[i], i))
    for index in by_remainder[: BLOCK - sum(counts)]:
        counts[index] += 1
    if min(counts) == 0:
        least = BLOCK * min(weights) / total
        text = (
            f"weights {list(weights)}: the smallest is {least:.2f} of every {BLOCK} samples, so its source would never "
        )
        raise ValueError(text + f"be seen; the least share is 1 of {BLOCK}")
    return tuple(counts)


class SourcePlan:
    """The order of one source.

    Args:
        counts: Samples of each shard that may be planned.
        seed: The run's seed.
        number: The source's index: sources of equal shape are drawn apart.
    """

    def __init__(self, counts: Sequence[int] | Ints, seed: int, number: int) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.present = int(self.starts[-1])
        if self.present == 0:
            raise ValueError(f"source {number} holds no sample")
        self.seed, self.number = seed, number
        self.lanes = max(1, min(_MOST_LANES, self.present // 64))
        self.lane_length = self.present // self.lanes
        self.planned = self.lanes * self.lane_length
        self._epochs: dict[int, tuple[Ints, Ints, int]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_epochs": {}}

    def _epoch(self, epoch: int) -> tuple[Ints, Ints, int]:
        """Order of the shards, where each begins on that axis, and the rotation."""
        if epoch not in self._epochs:
            if len(self._epochs) >= 4:
                del self._epochs[min(self._epochs)]
            order = permutation(len(self.counts), self.seed, _SHARDS, self.number, epoch)
            starts = np.concatenate([[0], np.cumsum(self.counts[order])])
            self._epochs[epoch] = order, starts, below(self.present, self.seed, _ROTATION, self.number, epoch)
        return self._epochs[epoch]

    def locate(self, ordinal: Ints) -> tuple[Ints, Ints, Ints]:
        """Shard, sample and epoch of the source's samples in the order in which they come, each (P,)."""
        epoch, place = np.divmod(ordinal, self.planned)
        slot, lane = np.divmod(place, self.lanes)
        window, inside = np.divmod(slot, WINDOW)
        shuffled = np.empty_like(ordinal)
        # rows of one (epoch, lane, window) share a permutation
        group = (epoch * self.lanes + lane) * (self.lane_length // WINDOW + 1) + window
        by_group = np.argsort(group, kind="stable")
        edges = np.flatnonzero(np.diff(group[by_group])) + 1
        for rows in np.split(by_group, edges) if len(ordinal) else []:
            first = rows[0]
            names = (int(epoch[first]), int(lane[first]), int(window[first]))
            size = min(WINDOW, self.lane_length - names[2] * WINDOW)
            drawn = _window(size, self.seed, _SLOTS, self.number, *names)
            shuffled[rows] = names[2] * WINDOW + drawn[inside[rows]]
        shard, sample = np.empty_like(ordinal), np.empty_like(ordinal)
        for number in np.unique(epoch).tolist():
            rows = np.flatnonzero(epoch == number)
            order, starts, rotation = self._epoch(number)
            axis = (lane[rows] * self.lane_length + shuffled[rows] + rotation) % self.present
            at = np.searchsorted(starts, axis, side="right") - 1
            shard[rows], sample[rows] = order[at], axis - starts[at]
        return shard, sample, epoch


class Plan:
    """The order of a run over all its sources.

    Args:
        counts: Per source the number of samples of each shard.
        weights: Per source its weight: its share of the samples trained on, whatever its size.
        seed: The run's seed, not negative.
    """

    def __init__(self, counts: Sequence[Sequence[int] | Ints], weights: Sequence[float], seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        self.seed = seed
        self.shares = shares(weights)
        self.sources = [SourcePlan(shards, seed, number) for number, shards in enumerate(counts)]
        self.first_id = np.concatenate([[0], np.cumsum([source.present for source in self.sources])])

    @property
    def epoch_samples(self) -> int | None:
        """Samples of one epoch of every source; positions of an epoch where the weights are as the sizes."""
        return sum(source.planned for source in self.sources)

    def ordinals(self, positions: Ints) -> tuple[Ints, Ints]:
        """Per position (P,) its source and how many samples of that source came before."""
        block, inside = np.divmod(positions, BLOCK)
        if len(self.sources) == 1:
            return np.zeros_like(positions), positions
        source, ordinal = np.empty_like(positions), np.empty_like(positions)
        counts = np.array(self.shares)
        for number in np.unique(block).tolist():
            rows = np.flatnonzero(block == number)
            drawn, rank = _block(self.seed, number, self.shares)
            source[rows] = drawn[inside[rows]]
            ordinal[rows] = number * counts[source[rows]] + rank[inside[rows]]
        return source, ordinal

    def consumed(self, position: int) -> list[int]:
        """How many samples of each source lie before a position."""
        if len(self.sources) == 1:
            return [position]
        block, inside = divmod(position, BLOCK)
        here = np.bincount(_block(self.seed, block, self.shares)[0][:inside], minlength=len(self.shares))
        return [block * share + int(count) for share, count in zip(self.shares, here, strict=True)]

    def _rows(self, positions: Ints, source: Ints, ordinal: Ints) -> Rows:
        shard, sample, epoch, id_ = (np.empty_like(positions) for _ in range(4))
        for number in np.unique(source).tolist():
            plan, rows = self.sources[number], np.flatnonzero(source == number)
            shard[rows], sample[rows], epoch[rows] = plan.locate(ordinal[rows])
            id_[rows] = self.first_id[number] + plan.starts[shard[rows]] + sample[rows]
        return Rows(positions, source, shard, sample, epoch, id_)

    def rows(self, positions: Ints) -> Rows:
        """The samples at some positions.

        Args:
            positions: Not negative, in any order (P,).
        """
        positions = np.asarray(positions, np.int64)
        return self._rows(positions, *self.ordinals(positions))

    def substitute(self, position: int, batch_start: int, batch_size: int, attempt: int = 0) -> Rows | None:
        """What is trained in place of a bad sample: from its source and epoch, half an epoch away.

        Args:
            position: Of the bad sample.
            batch_start: First position of the batch of all ranks that it is in.
            batch_size: Size of that batch: none of its samples is taken, unless the source has no other.
            attempt: 0, and one more for each substitute that was bad as well.

        Returns:
            One row at the bad sample's position, or None if the source has no further sample to offer.
        """
        source, ordinal = self.ordinals(np.array([position]))
        plan = self.sources[int(source[0])]
        epoch, place = divmod(int(ordinal[0]), plan.planned)
        tried = min(plan.planned, batch_size + attempt + 1)  # so many cannot all be in the batch
        far = epoch * plan.planned + (place + max(plan.planned // 2, 1) + np.arange(tried)) % plan.planned
        offered = self._rows(np.full(tried, position), np.full(tried, source[0]), far)
        batch = self.rows(np.arange(batch_start, batch_start + batch_size))
        own = self.rows(np.array([position])).id
        other = ~np.isin(offered.id, own)
        outside = other & ~np.isin(offered.id, batch.id)
        order = np.concatenate([np.flatnonzero(outside), np.flatnonzero(other & ~outside)])
        return offered.take(order[attempt : attempt + 1]) if attempt < len(order) else None
