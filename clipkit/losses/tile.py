"""What a loss over all pairs says of one tile of the logits: the contract between the tile loop and its losses.

Shapes: B rows on this rank, N columns on all ranks, (r, c) one tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from clipkit.losses.statistics import Statistic

Statistics = dict[str, Tensor]
Parts = dict[str, tuple[Tensor, Tensor | None]]
"""A statistic's name to its part by row (r,) and, of two-sided losses, by column (c,); (2, r) and (2, c) of a pair of numbers."""
Beside = Sequence[tuple[Tensor, Tensor]]
"""Tensors that go beside the features, without a gradient: one by row (B, ...), one by column (B, ...) of this rank, which travels with it."""


@dataclass(frozen=True)
class Tile:
    """Where a tile stands in the global matrix, and what stands beside it."""

    rows: slice
    """Rows of this rank, from 0."""
    columns: slice
    """Columns of all ranks."""
    offset: int
    """This rank's first row in the global batch: row i is paired with column ``offset + i``."""
    beside: Sequence[tuple[Tensor, Tensor]]
    """``Beside`` of these rows (r, ...) and of these columns (c, ...)."""
    scratch: Tensor
    """Memory (r, c) that the mathematics may overwrite."""

    def pairs(self, matrix: Tensor) -> Tensor:
        """A view (p,) of the entries of ``matrix`` (r, c) whose row and column are one pair; often empty."""
        return matrix.diagonal(self.rows.start + self.offset - self.columns.start)

    def along(self, dim: int, pairs: Tensor) -> Tensor:
        """Values of ``pairs`` (p,) by row (r,) where ``dim`` is 1, by column (c,) where it is 0, and 0 elsewhere."""
        ahead = self.columns.start - self.rows.start - self.offset
        first = max(0, ahead if dim else -ahead)
        out = pairs.new_zeros(self.scratch.shape[1 - dim])
        out[first : first + len(pairs)] = pairs
        return out


class TileMath:
    """The mathematics of one loss on one tile; subclasses fill in the methods.

    Logits are float32 or float64. ``rows`` and ``columns`` are complete statistics of this rank's rows (B,) and of all columns (N,).
    """

    kinds: Mapping[str, Statistic]
    """The statistics and how each is combined."""
    two_sided: bool = True
    """Whether there are statistics by column."""
    immediate: bool = False
    """Whether ``dlogits`` reads no statistics: then the forward pass gives the gradient too, and no tile is computed twice."""

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        """What a tile (r, c) adds; ``logits`` is left as it is."""
        raise NotImplementedError

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        """The sum of the loss over this rank's pairs; ``own`` are its columns. The sum over all ranks counts."""
        raise NotImplementedError

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        """Derivative (r, c) of the sum of the loss over all pairs of all ranks; may overwrite ``logits`` and return it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Prefixes:
    """Widths of the leading parts of an embedding that are trained as embeddings of their own, each with its weight."""

    widths: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, weight_of: Mapping[int, float]) -> Prefixes:
        """From width to weight."""
        return cls(tuple(weight_of), tuple(weight_of.values()))

    def __post_init__(self) -> None:
        if not self.widths or list(self.widths) != sorted(set(self.widths)) or self.widths[0] < 1:
            raise ValueError(f"prefixes must be widths that grow, each at least 1, got {list(self.widths)}")
        if len(self.weights) != len(self.widths) or min(self.weights) <= 0:
            raise ValueError(f"{len(self.widths)} prefixes need as many weights above 0, got {list(self.weights)}")
