"""The walk over all tiles: statistics on the way there, gradients on the way back.

Shapes as in ``tiled.py``: B rows on this rank, N columns on all ranks, D embedding width, K prefixes, (r, c) one tile. Where prefixes are
renormalised, rows of features hold K inverse norms after their D values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.losses.exchange import Block, Exchange
from clipkit.losses.tile import Parts, Prefixes, Statistics, Tile, TileMath


@dataclass
class Sums:
    """What the gradients are made of, before the scale and what comes from above."""

    dx: Tensor
    """(B, D)."""
    dy: Tensor
    """(B, D), summed over ranks."""
    dscale: Tensor
    dbias: Tensor


@dataclass
class Sweep:
    """One call of a tiled loss."""

    math: TileMath
    exchange: Exchange
    prefixes: Prefixes
    renormalised: bool
    side: int
    sizes: list[int]
    beside: list[tuple[Tensor, Tensor]]
    at_once: bool
    biased: bool
    rows: list[Statistics] = field(default_factory=list)
    columns: list[Statistics] = field(default_factory=list)

    @property
    def offset(self) -> int:
        """This rank's first row in the global batch."""
        return sum(self.sizes[: distributed.rank()])

    def forward(
        self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, needs: Sequence[bool]
    ) -> tuple[list[Tensor], Sums | None]:
        """Fill the statistics; return what the backward pass may use again, and its sums where they could be made at once."""
        self._empty(x)
        work = _Work(self, x, scale, bias, needs) if self.at_once and any(needs) else _Work(self, x, scale, bias, None)
        columns = [theirs for _, theirs in self.beside]
        journey = self.exchange.journey(y, columns, self.sizes, gradient=work.wants_dy)
        for block in journey:
            for tile, inside in self._tiles(x, block, work.scratch):
                logits = work.logits(block, tile, inside)
                for k, part in enumerate(logits):
                    self._merge(k, self.math.statistics(part, tile), tile)
                if work.needs is not None:
                    work.add(block, tile, inside, logits)
        if distributed.world_size() > 1 and self.math.two_sided:
            for total in self.columns:
                for name, kind in self.math.kinds.items():
                    total[name] = kind.over_ranks(total[name])
        if work.needs is not None:  # the backward pass needs no columns again
            return [], work.sums(journey.gradient() if work.wants_dy else None)
        return journey.kept(), None

    def backward(
        self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, kept: Sequence[Tensor], needs: Sequence[bool]
    ) -> Sums:
        """Compute each tile again and add up its gradients."""
        work = _Work(self, x, scale, bias, needs)
        columns = [theirs for _, theirs in self.beside]
        journey = self.exchange.journey(y, columns, self.sizes, gradient=work.wants_dy, kept=kept)
        for block in journey:
            for tile, inside in self._tiles(x, block, work.scratch):
                work.add(block, tile, inside, work.logits(block, tile, inside))
        return work.sums(journey.gradient() if work.wants_dy else None)

    def value(self, x: Tensor) -> Tensor:
        """The sum of the loss over this rank's pairs."""
        own = slice(self.offset, self.offset + len(x))
        parts = zip(self.prefixes.weights, self.rows, self.columns, strict=True)
        return torch.stack([weight * self.math.loss(rows, columns, own) for weight, rows, columns in parts]).sum()

    def _empty(self, x: Tensor) -> None:
        for _ in self.prefixes.widths:
            self.rows.append({name: kind.empty(len(x), x) for name, kind in self.math.kinds.items()})
            length = sum(self.sizes) if self.math.two_sided else 0
            self.columns.append({name: kind.empty(length, x) for name, kind in self.math.kinds.items()})

    def _merge(self, k: int, parts: Parts, tile: Tile) -> None:
        for name, (by_row, by_column) in parts.items():
            kind, rows, columns = self.math.kinds[name], self.rows[k][name], self.columns[k][name]
            rows[..., tile.rows] = kind.merge(rows[..., tile.rows], by_row)
            if by_column is not None:
                columns[..., tile.columns] = kind.merge(columns[..., tile.columns], by_column)

    def _tiles(self, x: Tensor, block: Block, scratch: _Buffer) -> Iterator[tuple[Tile, slice]]:
        """The tiles of this rank's rows and a block's columns, each with its columns counted from the block's first."""
        for left in range(0, len(block.features), self.side):
            inside = slice(left, min(len(block.features), left + self.side))
            columns = slice(block.start + inside.start, block.start + inside.stop)
            for top in range(0, len(x), self.side):
                rows = slice(top, min(len(x), top + self.side))
                sides = zip(self.beside, block.beside, strict=True)
                beside = [(mine[rows], theirs[inside]) for (mine, _), theirs in sides]
                memory = scratch.of(rows.stop - rows.start, inside.stop - inside.start)
                yield Tile(rows, columns, self.offset, beside, memory), inside


class _Buffer:
    """Memory of a tile, the same for all tiles of a pass."""

    def __init__(self, like: Tensor, side: int) -> None:
        self._flat = like.new_empty(side * side)

    def of(self, r: int, c: int) -> Tensor:
        return self._flat[: r * c].view(r, c)


class _Work:
    """Memory and sums of one pass; ``needs`` says which of x, y, scale and bias want a gradient, None where the pass makes none."""

    def __init__(self, sweep: Sweep, x: Tensor, scale: Tensor, bias: Tensor, needs: Sequence[bool] | None) -> None:
        self.sweep, self.x, self.needs = sweep, x, needs
        self.scale, self.bias = scale.to(x.dtype), bias.to(x.dtype)
        self.wants_dx = needs is not None and (needs[0] or needs[2])  # the scale's gradient is read off x's
        self.wants_dy = needs is not None and needs[1]
        side, prefixes = min(sweep.side, max(sum(sweep.sizes), 1)), len(sweep.prefixes.widths)
        self.scratch = _Buffer(x, side)
        self.values = [_Buffer(x, side) for _ in range(prefixes)]
        self.cosines = [_Buffer(x, side) for _ in range(prefixes if sweep.renormalised else 0)]
        self.dx = torch.zeros_like(x) if self.wants_dx else x[:0]
        self.dbias = x.new_zeros((), dtype=torch.float64)

    def logits(self, block: Block, tile: Tile, inside: slice) -> list[Tensor]:
        """The logits (r, c) of each prefix, the shorter ones first."""
        a, b, widths = self.x[tile.rows], block.features[inside], self.sweep.prefixes.widths
        found: list[Tensor] = []
        for k, width in enumerate(widths):
            low, out = (widths[k - 1] if k else 0), self.values[k].of(len(a), len(b))
            if not self.sweep.renormalised:
                torch.mm(a, b.T, out=out).mul_(self.scale)
            else:  # the product so far lies in the scratch memory, which nobody else has needed yet
                product = tile.scratch
                torch.addmm(product, a[:, low:width], b[:, low:width].T, beta=float(k > 0), out=product)
                first = a.shape[1] - len(widths) + k
                cosine = torch.mul(product, a[:, first, None], out=self.cosines[k].of(len(a), len(b)))
                torch.mul(cosine.mul_(b[None, :, first]), self.scale, out=out)
            found.append(out.add_(self.bias) if self.sweep.biased else out)
        return found

    def add(self, block: Block, tile: Tile, inside: slice, logits: list[Tensor]) -> None:
        """Add a tile's part of the gradients."""
        sweep, widths = self.sweep, self.sweep.prefixes.widths
        a, b, total = self.x[tile.rows], block.features[inside], None
        assert self.needs is not None
        for k in reversed(range(len(widths))):
            g = sweep.math.dlogits(logits[k], tile, sweep.rows[k], sweep.columns[k])
            if sweep.prefixes.weights[k] != 1.0:
                g.mul_(sweep.prefixes.weights[k])
            if self.needs[3]:
                self.dbias += g.sum()
            if sweep.renormalised:
                self._through_norms(g, block, tile, inside, k)
            total = g if total is None else total.add_(g)  # a slice is part of its own and of all longer prefixes
            part = slice(widths[k - 1] if k else 0, widths[k])
            if self.wants_dx:
                self.dx[tile.rows, part].addmm_(total, b[:, part])
            if self.wants_dy and block.gradient is not None:
                block.gradient[inside, part].addmm_(total.T, a[:, part])

    def _through_norms(self, g: Tensor, block: Block, tile: Tile, inside: slice, k: int) -> None:
        """Add the gradient of the inverse norms, and turn ``g``, of the cosine, into that of the product before norms."""
        cosine = self.cosines[k].of(*g.shape).mul_(g)
        first = self.x.shape[1] - len(self.sweep.prefixes.widths) + k
        by_row, by_column = self.x[tile.rows, first], block.features[inside, first]
        if self.wants_dx:
            self.dx[tile.rows, first] += cosine.sum(1) / by_row
        if self.wants_dy and block.gradient is not None:
            block.gradient[inside, first] += cosine.sum(0) / by_column
        g.mul_(by_row[:, None]).mul_(by_column[None])

    def sums(self, dy: distributed.Pending[Tensor] | None) -> Sums:
        """The sums, once all tiles are in; those of y are under way from the other ranks meanwhile."""
        dscale = self.x.new_zeros((), dtype=torch.float64)
        if self.wants_dx:
            # sum of dlogits * cosine, without a pass over the tiles; the norms' part of x gives it once more
            by_row = torch.bmm(self.x[:, None, :], self.dx[:, :, None])
            dscale = by_row.double().sum() / (2 if self.sweep.renormalised else 1)
        return Sums(self.dx, self.dx[:0] if dy is None else dy.wait(), dscale, self.dbias)
