"""Bounds of the mutual information between two fields, in nats, from the critic f(x, y) = scale x . y.

All are maximised (the loss is minus the bound) and none is the mutual information:

* ``infonce``: ln N less the InfoNCE loss (`van den Oord et al. <https://arxiv.org/abs/1807.03748>`_, equation 5). Low variance, at most ln N.
* ``dv``: the mean of f over pairs less the log-mean-exp of f over all that are no pairs (Donsker and Varadhan; `MINE
  <https://arxiv.org/abs/1801.04062>`_, equation 10, without its moving average). Its variance grows as e^I, and the logarithm of a mean of few
  makes it too high on finite batches.
* ``smile``: the same with e^f clipped to [e^-clip, e^clip] in the second term (`SMILE <https://arxiv.org/abs/1910.06222>`_, equation 15), less
  variance for some bias, upwards too, so no strict bound; the gradient is that of the Jensen-Shannon bound, as in its authors' code.

With the best critic on Gaussians of 20 dimensions and batches of 256 (ln 256 = 5.55), means of 40: truth 2.04 gives 1.97, 2.04 and 2.04; 6.64
gives 4.85 (out of reach), 6.76 and 6.77; with ``clip`` 5, SMILE's own, 2.07 and 7.52.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from clipkit import distributed
from clipkit.losses.base import Loss, checked_pair, pooled_of
from clipkit.losses.infonce import infonce
from clipkit.losses.statistics import LogSum, Sum, log_sum
from clipkit.losses.tile import Parts, Statistics, Tile, TileMath
from clipkit.losses.tiled import tiled_loss

Bound = Literal["infonce", "dv", "smile"]


class MutualInformation(Loss):
    """Minus a lower bound of the mutual information.

    Args:
        scale: Gives the inverse temperature, exponentiated.
        pair: The two fields.
        bound: Which bound.
        clip: Of ``smile``: the largest absolute value of the critic among non-pairs.

    Raises:
        ValueError: If an argument is none of the allowed.
    """

    def __init__(
        self,
        scale: Callable[[], Tensor],
        *,
        pair: tuple[str, str] = ("image", "text"),
        bound: Bound = "smile",
        clip: float = 10.0,
    ) -> None:
        super().__init__()
        if bound not in ("infonce", "dv", "smile"):
            raise ValueError(f"bound must be infonce, dv or smile, got {bound!r}")
        if clip <= 0:
            raise ValueError(f"clip must be above 0, got {clip}")
        self.scale = scale
        self.pair = checked_pair(pair)
        self.bound: Bound = bound
        self.clip = clip

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute minus the bound."""
        x, y = pooled_of(features, self.pair)
        return -mutual_information(x, y, self.scale(), bound=self.bound, clip=self.clip)


def mutual_information(
    x: Tensor, y: Tensor, scale: Tensor, *, bound: Bound = "smile", clip: float = 10.0, tile: int | None = None
) -> Tensor:
    """A lower bound of the mutual information, estimated on the global batch.

    Args:
        x: Embeddings of one field (B, D); of any norm.
        y: Embeddings of the other (B, D), paired by row.
        scale: Factor of the critic, a positive scalar.
        bound: Which bound.
        clip: Of ``smile``.
        tile: Rows and columns of the critic that exist at one time.

    Returns:
        Nats, a scalar; averaged over ranks it is the estimate on the global batch. NaN where a feature is.

    Raises:
        ValueError: If the two batches differ in shape, or there is one pair in all and so nothing to compare with.

    Example:
        >>> import torch
        >>> x = torch.eye(4)
        >>> round(mutual_information(x, x, torch.tensor(100.0), bound="infonce").item(), 4)  # no more than ln 4
        1.3863
        >>> round(mutual_information(x, x, torch.tensor(3.0), bound="dv").item(), 4)  # 3 - ln e^0
        3.0
    """
    pairs = sum(distributed.gather_sizes(len(x), x.device))
    if pairs == 1:
        raise ValueError("mutual information needs at least 2 pairs in a batch, got 1")
    if bound == "infonce":
        return math.log(max(pairs, 1)) - infonce(x, y, scale, tile=tile)
    rule = _Smile(pairs, clip) if bound == "smile" else _DonskerVaradhan(pairs)
    return -tiled_loss(x, y, scale, math=rule, tile=tile)


class _DonskerVaradhan(TileMath):
    def __init__(self, pairs: int) -> None:
        self.pairs = pairs
        self.kinds = {"others": LogSum(), "positive": Sum()}

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        positive = tile.pairs(logits)
        others = self.among_others(logits)
        tile.pairs(others).fill_(-math.inf)
        return {
            "others": (log_sum(others, 1, tile.scratch), log_sum(others, 0, tile.scratch)),
            "positive": (tile.along(1, positive), tile.along(0, positive)),
        }

    def among_others(self, logits: Tensor) -> Tensor:
        """The critic as the second term takes it, a copy."""
        return logits.clone()

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        mean = columns["others"].logsumexp(0) - math.log(self.pairs * (self.pairs - 1))  # complete on every rank
        return mean * len(rows["positive"]) - rows["positive"].sum()

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        total = columns["others"].logsumexp(0) - math.log(self.pairs)
        g = logits.sub_(total).exp_()
        tile.pairs(g).fill_(-1.0)
        return g


class _Smile(_DonskerVaradhan):
    immediate = True

    def __init__(self, pairs: int, clip: float) -> None:
        super().__init__(pairs)
        self.clip = clip

    def among_others(self, logits: Tensor) -> Tensor:
        return logits.clamp(-self.clip, self.clip)

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        # of the Jensen-Shannon bound: mean over pairs of -softplus(-f) less mean over the others of softplus(f)
        pairs = tile.pairs(logits).neg().sigmoid_().neg_()
        g = logits.sigmoid_().div_(self.pairs - 1)
        tile.pairs(g).copy_(pairs)
        return g
