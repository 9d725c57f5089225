"""Columns passed round a ring of ranks: O(B D) memory a rank in place of O(N D), for very large batches.

Each rank computes with the block that it holds while the next one travels; in the backward pass a block's gradient travels with it and is
home after W hops (`Ring attention <https://arxiv.org/abs/2310.01889>`_, section 3, without its blockwise softmax, which is the engine's).
It sends the features W - 1 times in each direction and the gradients W times: within a node a gather is as fast and simpler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from clipkit import distributed
from clipkit.losses.exchange import Block, Exchange, Journey, padded


class Ring(Exchange):
    """One block of columns on each rank at a time: three in memory, with the one on its way and the gradients."""

    def journey(
        self, y: Tensor, beside: Sequence[Tensor], sizes: Sequence[int], *, gradient: bool, kept: Sequence[Tensor] = ()
    ) -> Journey:
        """Set out; nothing is kept between journeys, that is the point."""
        return _Round(y, beside, sizes, gradient)


class _Round(Journey):
    def __init__(self, y: Tensor, beside: Sequence[Tensor], sizes: Sequence[int], gradient: bool) -> None:
        self.sizes = sizes
        self.held = [padded(x, max(sizes)).contiguous() for x in (y, *beside)]
        self.sums = self.held[0].new_zeros(self.held[0].shape) if gradient else None
        self.ours = self.held[0] is not y and self.held[0].data_ptr() != y.data_ptr()  # else nothing may overwrite it

    def __iter__(self) -> Iterator[Block]:
        world, rank = distributed.world_size(), distributed.rank()
        free: Tensor | None = None  # a block that nobody needs: what comes next is put there
        for hop in range(world):
            owner = (rank - hop) % world
            rows = self.sizes[owner]
            coming = distributed.pass_on(self.held, free) if hop < world - 1 else None
            features, *beside = (x[:rows] for x in self.held)
            sums = None if self.sums is None else self.sums[:rows]
            yield Block(sum(self.sizes[:owner]), features, beside, sums)
            free = self.held[0] if hop > 0 or self.ours else None
            if coming is not None:  # and what was held has left
                self.held = coming.wait()
            if self.sums is not None:  # with the last hop it is home
                left = self.sums
                self.sums, free = distributed.pass_on([left], free).wait()[0], left

    def gradient(self) -> distributed.Pending[Tensor]:
        assert self.sums is not None
        own = self.sums[: self.sizes[distributed.rank()]]
        return distributed.Pending(None, lambda: own)
