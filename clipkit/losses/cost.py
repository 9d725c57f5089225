"""What a tiled loss costs one rank in a step, on paper: bytes, multiplications and memory; ``docs/scaling.md`` tells them for large numbers.

Shapes: N pairs on W ranks, B = N / W rows on each, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_SIZES = 8
"""Bytes in which a rank says how many rows it has."""


@dataclass(frozen=True)
class Cost:
    """One rank's share of a step's loss, forward and backward."""

    ranks: int
    gather: int
    """Bytes that go into all-gathers: this rank's columns, and how many there are."""
    scatter: int
    """Bytes that go into reduce-scatters: the gradients of all columns."""
    reduce: int
    """Bytes that go into all-reduces: statistics by column."""
    ring: int
    """Bytes that this rank sends to the next one."""
    flops: int
    """Floating point operations of the matrix products, a multiplication and an addition being two."""
    memory: int
    """Highest number of bytes above the features of this rank and their gradients."""

    @property
    def sent(self) -> int:
        """Bytes that leave the rank where collectives go round a ring; as many arrive.

        W - 1 blocks in an all-gather, (W - 1) / W of what goes in for a reduce-scatter, twice that for an all-reduce.
        """
        others = self.ranks - 1
        return others * self.gather + others * (self.scatter + 2 * self.reduce) // self.ranks + self.ring


def loss_cost(
    pairs: int,
    ranks: int,
    width: int,
    *,
    kind: Literal["infonce", "sigmoid"] = "infonce",
    exchange: Literal["gather", "ring"] = "gather",
    tile: int = 4096,
    element: int = 4,
) -> Cost:
    """The cost of a loss in its plain form: no duplicates, no smoothing, no prefixes.

    Args:
        pairs: N, of the global batch, a multiple of ``ranks``.
        ranks: W.
        width: D.
        kind: InfoNCE keeps three numbers a row and a column (a log-sum-exp costs two all-reduces) and computes each tile twice, four
            products in all; the sigmoid loss keeps one a row and makes its gradient in the forward pass, three products.
        exchange: How columns of other ranks come.
        tile: Rows and columns of a tile.
        element: Bytes of a number.

    Example:
        >>> cost = loss_cost(32 * 1024, 8, 512)  # 8 MiB into the gather, 64 MiB into the scatter, 384 KiB of statistics
        >>> cost.gather - 8, cost.scatter, cost.reduce
        (8388608, 67108864, 393216)
        >>> loss_cost(32 * 1024, 1, 512).sent
        0
    """
    rows, two_sided, alone = pairs // ranks, kind == "infonce", ranks == 1
    block, everything = rows * width * element, pairs * width * element
    side = min(tile, pairs)
    # a tile and its scratch memory; InfoNCE keeps log-sum-exp and positive of a row and of a column, and combines them
    memory = (2 * side * side + (3 * (rows + pairs) if two_sided else rows)) * element
    ring = 0
    if not alone and exchange == "gather":
        memory += 2 * everything
    elif not alone:
        hops = (ranks - 1) * (2 if two_sided else 1)  # of the features; the gradients come home with one more
        ring = (hops + ranks) * block
        memory += 2 * block  # one on its way and one of gradients; the third, which goes home, is this rank's gradient
    if not two_sided:
        memory = max(
            memory, 2 * block
        )  # gradients of the forward pass beside those that the backward pass makes of them
    gathered = exchange == "gather" and not alone
    return Cost(
        ranks=ranks,
        gather=0 if alone else _SIZES + (block if gathered else 0),
        scatter=everything if gathered else 0,
        reduce=3 * pairs * element if two_sided and not alone else 0,
        ring=ring,
        flops=(4 if two_sided else 3) * 2 * rows * pairs * width,
        memory=memory,
    )
