"""The triplet loss with the hardest negative of the global batch (`VSE++ <https://arxiv.org/abs/1707.05612>`_, equation 6).

Per pair: max(0, margin - s(i, t) + s(i, t')) + max(0, margin - s(i, t) + s(i', t)), where t' and i' are the most similar wrong text and image
of all ranks. The engine finds where they stand; of equally similar ones the first counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipkit.losses.base import Loss, checked_pair, pooled_of
from clipkit.losses.statistics import ArgMax, Sum
from clipkit.losses.tile import Parts, Statistics, Tile, TileMath
from clipkit.losses.tiled import tiled_loss


class Triplet(Loss):
    """Hinge between a pair and its hardest negatives in both directions.

    Args:
        pair: The two fields.
        margin: By how much a pair's cosine shall be above that of its hardest negative; VSE++ takes 0.2.

    Raises:
        ValueError: If ``margin`` is not above 0, or ``pair`` does not name two fields.
    """

    def __init__(self, *, pair: tuple[str, str] = ("image", "text"), margin: float = 0.2) -> None:
        super().__init__()
        if margin <= 0:
            raise ValueError(f"margin must be above 0, got {margin}")
        self.pair = checked_pair(pair)
        self.margin = margin

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of this rank's pairs against every rank's."""
        x, y = pooled_of(features, self.pair)
        return triplet(x, y, margin=self.margin)


def triplet(image: Tensor, text: Tensor, *, margin: float = 0.2, tile: int | None = None) -> Tensor:
    """Hardest-negative triplet loss (VSE++, equation 6).

    Args:
        image: Unit-norm image embeddings (B, D).
        text: Unit-norm text embeddings (B, D), paired with ``image`` by row.
        margin: Of the hinge, in cosines.
        tile: Rows and columns of the similarities that exist at one time.

    Returns:
        The mean over pairs of both hinges, a scalar; averaged over ranks it is the loss of the global batch. NaN where a feature is.

    Raises:
        ValueError: If the two batches differ in shape.

    Example:
        >>> x = torch.eye(2)
        >>> triplet(x, x.flip(0), margin=0.2).item()  # each wrong one is as near as can be: 2 (0.2 + 1)
        2.4000000953674316
    """
    return tiled_loss(image, text, image.new_ones(()), math=_HardestNegative(margin), tile=tile)


class _HardestNegative(TileMath):
    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.kinds = {"hardest": ArgMax(), "positive": Sum()}

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        positive = tile.pairs(logits).clone()
        others = tile.scratch.copy_(logits)
        tile.pairs(others).fill_(-torch.inf)
        row, column = others.max(1), others.max(0)
        by_row = torch.stack([row.values, row.indices.to(logits.dtype) + tile.columns.start])
        by_column = torch.stack([column.values, column.indices.to(logits.dtype) + tile.rows.start + tile.offset])
        return {
            "hardest": (by_row, by_column),
            "positive": (tile.along(1, positive), tile.along(0, positive)),
        }

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        by_row = (self.margin + rows["hardest"][0] - rows["positive"]).clamp_min(0)
        by_column = (self.margin + columns["hardest"][0, own] - columns["positive"][own]).clamp_min(0)
        return by_row.sum() + by_column.sum()

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        at_row = torch.arange(tile.rows.start, tile.rows.stop, device=logits.device) + tile.offset
        at_column = torch.arange(tile.columns.start, tile.columns.stop, device=logits.device)
        (row_top, row_place), row_pair = rows["hardest"][:, tile.rows], rows["positive"][tile.rows]
        (top, place), pair = columns["hardest"][:, tile.columns], columns["positive"][tile.columns]
        row_on, on = self.margin + row_top - row_pair > 0, self.margin + top - pair > 0
        g: Tensor = ((row_place[:, None] == at_column) & row_on[:, None]).to(logits.dtype)
        g += (place == at_row[:, None]) & on
        diagonal = (at_row[:, None] == at_column).to(logits.dtype)
        g -= diagonal * (row_on[:, None].to(g.dtype) + on.to(g.dtype))
        return g
