"""The sigmoid loss: each pair of rows is judged on its own, as match or no match.

Sum over all i, j of -log sigmoid(z_ij (scale x_i . y_j + bias)), z_ij = 1 for pairs and -1 else, over the number of pairs
(`SigLIP <https://arxiv.org/abs/2303.15343>`_, equation 1 and algorithm 1). A tile needs nothing of another: the forward pass gives the gradient
too, three products in place of four.

At the start nearly all pairs are negatives; the bias makes up for it. SigLIP starts it at -10 and the scale at 10; -ln(batch size) puts the
first predictions at the share of positives, 1 / batch size, whatever the batch size is (-10.4 at 32,768).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.losses.base import Loss, checked_pair, pooled_of
from clipkit.losses.exchange import Exchange
from clipkit.losses.sameness import (
    Duplicates,
    RepeatWarning,
    beside_of,
    check_duplicates,
    equal_pairs,
    sameness_keys,
    without_duplicates,
)
from clipkit.losses.statistics import Sum
from clipkit.losses.tile import Parts, Prefixes, Statistics, Tile, TileMath
from clipkit.losses.tiled import tiled_loss


class Sigmoid(Loss):
    """The sigmoid loss between two fields.

    Args:
        scale: Gives the inverse temperature, exponentiated.
        bias: Gives the bias of the logits, a scalar.
        pair: The two fields.
        duplicates: What pairs with an equal id, content or label are to each other.
        prefixes: Leading widths that are trained as embeddings of their own, each with its weight (Matryoshka); None for the whole.
        exchange: How features of other ranks come here; None gathers them.
        tile: Rows and columns of the logits that exist at one time; None to choose by device.

    Raises:
        ValueError: If an argument is none of the allowed.
    """

    def __init__(
        self,
        scale: Callable[[], Tensor],
        bias: Callable[[], Tensor],
        *,
        pair: tuple[str, str] = ("image", "text"),
        duplicates: Duplicates = "negatives",
        prefixes: Mapping[int, float] | None = None,
        exchange: Exchange | None = None,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        check_duplicates(duplicates)
        if tile is not None and tile < 1:
            raise ValueError(f"tile must be at least 1, got {tile}")
        self.scale = scale
        self.bias = bias
        self.pair = checked_pair(pair)
        self.duplicates: Duplicates = duplicates
        self.prefixes = None if prefixes is None else Prefixes.of(prefixes)
        self.exchange = exchange
        self.tile = tile
        self._repeats = RepeatWarning()

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of this rank's rows against every rank's."""
        x, y = pooled_of(features, self.pair)
        keys = None
        if self.duplicates == "negatives":
            self._repeats.look(batch)
        else:
            keys = sameness_keys(batch, self.pair, len(x), x.device)
        return sigmoid(
            x,
            y,
            self.scale(),
            self.bias(),
            duplicates=self.duplicates,
            keys=keys,
            prefixes=self.prefixes,
            exchange=self.exchange,
            tile=self.tile,
        )


def sigmoid(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    duplicates: Duplicates = "negatives",
    keys: Tensor | None = None,
    prefixes: Prefixes | None = None,
    exchange: Exchange | None = None,
    tile: int | None = None,
) -> Tensor:
    """The sigmoid loss of this rank's rows against all columns (SigLIP, equation 1).

    Args:
        image: Unit-norm image embeddings (B, D), float32 or float64.
        text: Unit-norm text embeddings (B, D), paired with ``image`` by row.
        scale: Inverse temperature, a positive scalar, already exponentiated.
        bias: Added to the logits, a scalar.
        duplicates: What rows that agree in any of ``keys`` are to each other; as positives each of them counts like a pair.
        keys: int64 (B, K); rows i and j are the same thing where any of the K agrees.
        prefixes: Leading widths to take as embeddings; the result is their weighted sum.
        exchange: How features of other ranks come here; None gathers them.
        tile: Rows and columns of the logits that exist at one time.

    Returns:
        The loss in nats a pair, a scalar; averaged over ranks it is the loss of the global batch. NaN where a feature is.

    Raises:
        ValueError: If the two batches differ in shape, or ``duplicates`` needs keys and there are none.

    Example:
        >>> x = torch.eye(2)
        >>> round(sigmoid(x, x, torch.tensor(10.0), torch.tensor(-5.0)).item(), 4)  # 2 ln(1 + e^-5)
        0.0134
    """
    return tiled_loss(
        image,
        text,
        scale,
        bias,
        math=_BinaryCrossEntropy(duplicates),
        beside=beside_of(duplicates, keys),
        prefixes=prefixes,
        exchange=exchange,
        tile=tile,
    )


def start_bias(batch_size: int) -> float:
    """The bias with which a scale of 0 would predict the share of positives: -ln(batch size), near SigLIP's -10 at 22,026.

    Example:
        >>> round(start_bias(32768), 2)
        -10.4
    """
    return -math.log(batch_size)


class _BinaryCrossEntropy(TileMath):
    two_sided = False
    immediate = True

    def __init__(self, duplicates: Duplicates) -> None:
        self.duplicates = duplicates
        self.kinds = {"loss": Sum()}

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        if self.duplicates == "ignore":
            logits = without_duplicates(logits, tile)
        if self.duplicates == "positives":
            return {"loss": (F.softplus(logits.where(~equal_pairs(tile), -logits)).sum(1), None)}
        # ln(1 + e^x) as max(x, 0) + ln(1 + e^-|x|), in place
        terms = torch.abs(logits, out=tile.scratch).neg_().exp_().log1p_()
        by_row = terms.sum(1) + torch.clamp(logits, min=0, out=terms).sum(1)
        return {"loss": (by_row - tile.along(1, tile.pairs(logits)), None)}

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        return rows["loss"].sum()

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        if self.duplicates == "positives":
            return logits.sigmoid_().sub_(equal_pairs(tile).to(logits.dtype))
        if self.duplicates == "ignore":
            logits = without_duplicates(logits, tile)
        pairs = tile.pairs(logits).neg().sigmoid_().neg_()  # sigmoid - 1 without the cancellation
        g = logits.sigmoid_()
        tile.pairs(g).copy_(pairs)
        return g
