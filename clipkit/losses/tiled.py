"""The tile loop under every loss over all pairs of a global batch: O(N d) memory, one similarity pass each way.

Rank r holds B rows of the first field and gathers the N columns of the second. It walks the (B, N) logits in tiles, keeps what the
loss asks for by row and by column (a log-sum-exp with a running maximum, or a sum), and forgets the tile. Rows are complete on their
rank; columns are combined over ranks, an all-reduce of N numbers. The backward pass computes each tile again. The second direction of a
symmetric loss thus needs neither its own product nor a gathered first field.

Shapes: B rows on this rank, N columns on all ranks, D embedding width, (r, c) one tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit import distributed

Statistics = dict[str, Tensor]


@dataclass(frozen=True)
class Tile:
    """Where a tile stands in the global matrix."""

    rows: slice
    """Rows of this rank, from 0."""
    columns: slice
    """Columns of all ranks."""
    offset: int
    """This rank's first row in the global batch: row i is paired with column ``offset + i``."""

    def diagonal(self, device: torch.device) -> Tensor:
        """True where row and column are one pair (r, c)."""
        rows = torch.arange(self.rows.start, self.rows.stop, device=device) + self.offset
        return rows[:, None] == torch.arange(self.columns.start, self.columns.stop, device=device)


class TileMath:
    """The mathematics of one loss on one tile; subclasses fill in the three methods."""

    log_sums: Sequence[str] = ()
    """Statistics that combine by log-sum-exp."""
    sums: Sequence[str] = ()
    """Statistics that combine by addition."""

    def statistics(self, logits: Tensor, tile: Tile) -> dict[str, tuple[Tensor, Tensor]]:
        """What a tile (r, c) adds: each statistic's name to its part by row (r,) and by column (c,)."""
        raise NotImplementedError

    def loss(self, rows: Statistics, columns: Statistics) -> Tensor:
        """The sum of the loss over this rank's pairs, from complete statistics of its rows (B,) and its own columns (B,)."""
        raise NotImplementedError

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        """Derivative (r, c) of the sum of the loss over all pairs of all ranks, from complete statistics (B,) and (N,)."""
        raise NotImplementedError


@dataclass
class _State:
    """What forward leaves for backward beside the tensors."""

    math: TileMath
    size: int
    sizes: list[int]
    rows: Statistics = field(default_factory=dict)
    columns: Statistics = field(default_factory=dict)

    @property
    def offset(self) -> int:
        return sum(self.sizes[: distributed.rank()])

    def tiles(self) -> Iterator[Tile]:
        own, total = self.sizes[distributed.rank()], sum(self.sizes)
        for top in range(0, own, self.size):
            for left in range(0, total, self.size):
                rows, columns = slice(top, min(own, top + self.size)), slice(left, min(total, left + self.size))
                yield Tile(rows, columns, self.offset)


def tiled_loss(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, *, math: TileMath, sizes: Sequence[int], tile: int
) -> Tensor:
    """Mean over the global batch of a loss on ``scale * x @ y.T + bias``.

    Args:
        x: Unit-norm embeddings of one field (B, D), float32 or float64.
        y: Unit-norm embeddings of the other (B, D), paired by row.
        scale: Inverse temperature, a positive scalar.
        bias: Scalar added to the logits, or None.
        math: The loss on one tile.
        sizes: Pairs of each rank.
        tile: Rows and columns of a tile.

    Returns:
        A scalar; its average over ranks is the global mean, and so is the average of its gradients.
    """
    zero = torch.zeros((), dtype=scale.dtype, device=scale.device) if bias is None else bias
    result: Tensor = _TiledLoss.apply(x, y, scale, zero, _State(math, tile, list(sizes)))
    return result


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, state: _State) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            everyone = distributed.all_gather_rows(y, state.sizes)
            _accumulate(x, everyone, scale, bias, state)
            own = slice(state.offset, state.offset + len(x))
            value = state.math.loss(state.rows, {name: part[own] for name, part in state.columns.items()})
        ctx.save_for_backward(x, everyone, scale, bias)
        ctx.state = state
        # DDP averages over ranks; times W / N that average is the global mean, for uneven ranks too
        return value * (distributed.world_size() / sum(state.sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, everyone, scale, bias = ctx.saved_tensors
        state: _State = ctx.state
        wants_x, wants_y = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        dx, dy = torch.zeros_like(x), torch.zeros_like(everyone)
        dscale, dbias = torch.zeros_like(x[:0].sum()), torch.zeros_like(x[:0].sum())
        with torch.autocast(x.device.type, enabled=False):
            for tile in state.tiles():
                a, b = x[tile.rows], everyone[tile.columns]
                cosine = a @ b.T
                dlogits = state.math.dlogits(
                    cosine * scale.to(x.dtype) + bias.to(x.dtype), tile, state.rows, state.columns
                )
                dscale += (dlogits * cosine).sum()
                dbias += dlogits.sum()
                if wants_x:
                    dx[tile.rows].addmm_(dlogits, b)
                if wants_y:
                    dy[tile.columns].addmm_(dlogits.T, a)
            dy = distributed.reduce_scatter_rows(dy, state.sizes) if wants_y else dy
            # each rank returns its share times W, which DDP's average turns into the sum; scale and bias are left to that same average
            factor = upstream.to(x.dtype) * (distributed.world_size() / sum(state.sizes))
            towers = factor * scale.to(x.dtype)
        return (
            dx * towers if wants_x else None,
            dy * towers if wants_y else None,
            (dscale * factor).to(scale.dtype),
            (dbias * factor).to(bias.dtype),
            None,
        )


def _accumulate(x: Tensor, everyone: Tensor, scale: Tensor, bias: Tensor, state: _State) -> None:
    """Fill the statistics of ``state``: rows of this rank, columns combined over ranks."""
    math_ = state.math
    for name in (*math_.log_sums, *math_.sums):
        start = -math.inf if name in math_.log_sums else 0.0
        state.rows[name] = x.new_full((len(x),), start)
        state.columns[name] = x.new_full((len(everyone),), start)
    for tile in state.tiles():
        logits = (x[tile.rows] @ everyone[tile.columns].T) * scale.to(x.dtype) + bias.to(x.dtype)
        for name, (by_row, by_column) in math_.statistics(logits, tile).items():
            for total, part, where in (
                (state.rows[name], by_row, tile.rows),
                (state.columns[name], by_column, tile.columns),
            ):
                total[where] = torch.logaddexp(total[where], part) if name in math_.log_sums else total[where] + part
    if distributed.world_size() > 1:
        for name in math_.log_sums:
            state.columns[name] = _log_sum_over_ranks(state.columns[name])
        for name in math_.sums:
            distributed.all_reduce_(state.columns[name])


def _log_sum_over_ranks(x: Tensor) -> Tensor:
    top = distributed.all_reduce_(x.clone(), "max")
    return top + distributed.all_reduce_((x - top).exp()).log()
