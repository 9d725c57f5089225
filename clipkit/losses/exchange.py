"""How the columns of other ranks reach this one, and how their gradients get home: gathered, all at once.

``ring.py`` holds the other way, of less memory. Shapes: B_r rows of rank r, N columns of all ranks, D whatever stands in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit import distributed


@dataclass
class Block:
    """Some of the columns, as they are here now."""

    start: int
    """Its first column among those of all ranks."""
    features: Tensor
    """(n, D)."""
    beside: Sequence[Tensor]
    """What travels with the features, each (n, ...)."""
    gradient: Tensor | None
    """Where to add the gradient of ``features`` (n, D), or None where none is wanted."""


class Journey:
    """One pass over all columns: iterate over it once, then ask for the gradient of this rank's own."""

    def kept(self) -> list[Tensor]:
        """What a second journey with the same columns may be given so that it need not ask other ranks again."""
        return []

    def __iter__(self) -> Iterator[Block]:
        """The blocks, all columns of all ranks once, in any order."""
        raise NotImplementedError

    def gradient(self) -> distributed.Pending[Tensor]:
        """The gradient of this rank's columns (B_r, D), summed over ranks, under way."""
        raise NotImplementedError


class Exchange:
    """Makes journeys; holds no state."""

    def journey(
        self, y: Tensor, beside: Sequence[Tensor], sizes: Sequence[int], *, gradient: bool, kept: Sequence[Tensor] = ()
    ) -> Journey:
        """Set out.

        Args:
            y: This rank's columns (B_r, D), contiguous.
            beside: What travels with them, each (B_r, ...).
            sizes: Columns of each rank.
            gradient: Whether the blocks have a place for their gradient.
            kept: What an earlier journey kept.
        """
        raise NotImplementedError


class Gather(Exchange):
    """One all-gather of all columns, in flight while the own block is computed, and one reduce-scatter of their gradients."""

    def journey(
        self, y: Tensor, beside: Sequence[Tensor], sizes: Sequence[int], *, gradient: bool, kept: Sequence[Tensor] = ()
    ) -> Journey:
        """Set out."""
        return _Gathered(y, beside, sizes, gradient, kept)


class _Gathered(Journey):
    def __init__(
        self, y: Tensor, beside: Sequence[Tensor], sizes: Sequence[int], gradient: bool, kept: Sequence[Tensor]
    ) -> None:
        self.own, self.sizes = [y, *beside], sizes
        self.everyone = list(self.own) if distributed.world_size() == 1 else list(kept)
        self.under_way = [] if self.everyone else [distributed.all_gather_rows_async(x, sizes) for x in self.own]
        self.sums = y.new_zeros((sum(sizes), y.shape[1])) if gradient else None

    def kept(self) -> list[Tensor]:
        return [] if distributed.world_size() == 1 else self.everyone

    def __iter__(self) -> Iterator[Block]:
        total = sum(self.sizes)
        if not self.under_way:
            yield self._block(self.everyone, 0, total, 0)
            return
        start = sum(self.sizes[: distributed.rank()])
        stop = start + len(self.own[0])
        yield self._block(self.own, start, stop, start)
        self.everyone = [pending.wait() for pending in self.under_way]
        yield self._block(self.everyone, 0, start, 0)
        yield self._block(self.everyone, stop, total, 0)

    def _block(self, held: Sequence[Tensor], start: int, stop: int, first: int) -> Block:
        features, *beside = (x[start - first : stop - first] for x in held)
        return Block(start, features, beside, None if self.sums is None else self.sums[start:stop])

    def gradient(self) -> distributed.Pending[Tensor]:
        assert self.sums is not None
        return distributed.reduce_scatter_rows_async(self.sums, self.sizes)


def padded(x: Tensor, rows: int) -> Tensor:
    """``x`` (n, ...) with zeros after it, (rows, ...)."""
    return x if len(x) == rows else torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))])
