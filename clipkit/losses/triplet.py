"""The triplet loss with the hardest negative of the global batch (`VSE++ <https://arxiv.org/abs/1707.05612>`_, equation 6).

Per pair: max(0, margin - s(i, t) + s(i, t')) + max(0, margin - s(i, t) + s(i', t)), where t' and i' are the most similar wrong text and image
of all ranks. The engine finds where they stand; of equally similar ones the first counts.

From random weights the hardest negative collapses the embeddings to a point: every hinge stays at the margin, and its gradient is gone. The
remedy is a warm-up over all negatives (equation 5, as VSE-infinity's ``vse_mean_warmup_epochs``, `Chen et al.
<https://arxiv.org/abs/2011.04305>`_), here their mean and not their sum, so that the step does not grow with the batch.
Two small towers on the embedded drawings, 150 steps from random weights, held-out recall@5: 0.035 without a warm-up (chance 0.020), 0.16 with
100 of the steps, 0.27 with all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.losses.base import Loss, checked_pair, pooled_of
from clipkit.losses.statistics import ArgMax, Sum
from clipkit.losses.tile import Parts, Statistics, Tile, TileMath
from clipkit.losses.tiled import tiled_loss


class Triplet(Loss):
    """Hinge between a pair and its hardest negatives in both directions.

    Args:
        pair: The two fields.
        margin: By how much a pair's cosine shall be above that of its hardest negative; VSE++ takes 0.2.
        warmup: Samples from the start of training in which the mean over all negatives stands for the hardest. It is read off the batch's
            ``position``, so that a resumed run goes on where it stood; evaluation always takes the hardest.

    Raises:
        ValueError: If ``margin`` is not above 0, ``warmup`` is below 0, or ``pair`` does not name two fields.
    """

    def __init__(self, *, pair: tuple[str, str] = ("image", "text"), margin: float = 0.2, warmup: int = 0) -> None:
        super().__init__()
        if margin <= 0:
            raise ValueError(f"margin must be above 0, got {margin}")
        if warmup < 0:
            raise ValueError(f"warmup must be a number of samples, at least 0, got {warmup}")
        self.pair = checked_pair(pair)
        self.margin, self.warmup = margin, warmup

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of this rank's pairs against every rank's."""
        x, y = pooled_of(features, self.pair)
        return triplet(x, y, margin=self.margin, negatives="mean" if self._warms_up(batch) else "hardest")

    def _warms_up(self, batch: Mapping[str, Any]) -> bool:
        if not (self.training and self.warmup):
            return False
        if "position" not in batch:
            raise ValueError("the triplet loss's `warmup` is read off the batch's `position`, which is missing")
        return int(batch["position"]) < self.warmup


def triplet(
    image: Tensor,
    text: Tensor,
    *,
    margin: float = 0.2,
    negatives: Literal["hardest", "mean"] = "hardest",
    tile: int | None = None,
) -> Tensor:
    """Triplet loss with the hardest negative (VSE++, equation 6) or the mean over all negatives (equation 5 by their number).

    Args:
        image: Unit-norm image embeddings (B, D).
        text: Unit-norm text embeddings (B, D), paired with ``image`` by row.
        margin: Of the hinge, in cosines.
        negatives: Which of a pair's negatives count.
        tile: Rows and columns of the similarities that exist at one time.

    Returns:
        The mean over pairs of both hinges, a scalar; averaged over ranks it is the loss of the global batch. NaN where a feature is.

    Raises:
        ValueError: If the two batches differ in shape, or ``negatives`` is none of the two.

    Example:
        >>> x = torch.eye(2)
        >>> triplet(x, x.flip(0), margin=0.2).item()  # each wrong one is as near as can be: 2 (0.2 + 1)
        2.4000000953674316
    """
    if negatives not in ("hardest", "mean"):
        raise ValueError(f"negatives must be hardest or mean, got {negatives!r}")
    one = image.new_ones(())
    if negatives == "hardest":
        return tiled_loss(image, text, one, math=_HardestNegative(margin), tile=tile)
    pairs = sum(distributed.gather_sizes(len(image), image.device))
    rule = _AllNegatives(margin, max(1, pairs - 1))
    return tiled_loss(image, text, one, math=rule, beside=[_pairs(image, text)], tile=tile)


def _pairs(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of the pairs (B,), by row and by column, as wide as the logits will be."""
    x, y = (part.detach().to(torch.promote_types(part.dtype, torch.float32)) for part in (image, text))
    positive = (
        (x * y).sum(1) if x.shape == y.shape else x.new_zeros(len(x))
    )  # batches that do not pair are refused next
    return positive, positive


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


class _AllNegatives(TileMath):
    """Beside the tile: the cosines of the pairs of its rows and of its columns."""

    def __init__(self, margin: float, negatives: int) -> None:
        self.margin, self.negatives = margin, negatives
        self.kinds = {"hinges": Sum(), "active": Sum()}

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        by_row, by_column = self._hinges(logits, tile)
        return {
            "hinges": (by_row.sum(1), by_column.sum(0)),
            "active": ((by_row > 0).sum(1).to(logits.dtype), (by_column > 0).sum(0).to(logits.dtype)),
        }

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        return (rows["hinges"].sum() + columns["hinges"][own].sum()) / self.negatives

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        by_row, by_column = self._hinges(logits, tile)
        g = (by_row > 0).to(logits.dtype)
        g += by_column > 0
        # at a pair's own place: minus one for each of its hinges that is on
        own = slice(tile.rows.start + tile.offset, tile.rows.stop + tile.offset)
        active = rows["active"][tile.rows] + columns["active"][own]
        first = max(0, tile.columns.start - tile.rows.start - tile.offset)
        on = tile.pairs(g)
        on.copy_(-active[first : first + len(on)])
        return g.div_(self.negatives)

    def _hinges(self, logits: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        """The hinges (r, c) of each row's pair and of each column's pair, 0 at the pairs themselves."""
        of_row, of_column = tile.beside[0]
        by_row = (self.margin + logits - of_row[:, None]).clamp_min_(0)
        by_column = (self.margin + logits - of_column).clamp_min_(0)
        tile.pairs(by_row).zero_()
        tile.pairs(by_column).zero_()
        return by_row, by_column
