"""Image self-supervision beside the contrastive loss: two views of an image find one another among all views of the global batch.

NT-Xent (`SimCLR <https://arxiv.org/abs/2002.05709>`_, equation 1) as `SLIP <https://arxiv.org/abs/2112.12750>`_ adds it, weight 1 and
temperature 0.1. The projection head has a LayerNorm where SimCLR's has batch norms, whose statistics would be those of a rank and not of the
batch; it reads the tower's embedding, not the layer before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit import distributed
from clipkit.losses.base import Loss, checked_pair, pooled_of
from clipkit.losses.statistics import LogSum, Sum, log_sum
from clipkit.losses.tile import Parts, Statistics, Tile, TileMath
from clipkit.losses.tiled import tiled_loss


class SLIP(Loss):
    """NT-Xent between two views through a projection head of its own.

    Args:
        width: Embedding width of the views' tower.
        views: The two fields.
        hidden: Width of the head's two hidden layers.
        out: Width that the head projects to.
        temperature: Fixed.

    Raises:
        ValueError: If an argument is none of the allowed.
    """

    def __init__(
        self,
        width: int,
        *,
        views: tuple[str, str] = ("image_view1", "image_view2"),
        hidden: int = 4096,
        out: int = 256,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if min(width, hidden, out) < 1 or temperature <= 0:
            raise ValueError(
                f"widths must be at least 1 and temperature above 0, got {width, hidden, out, temperature}"
            )
        self.views = checked_pair(views)
        self.temperature = temperature
        self.head = nn.Sequential(
            nn.Linear(width, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, out),
        )

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of this rank's views against every rank's."""
        first, second = (self.head(x) for x in pooled_of(features, self.views))
        wide = torch.promote_types(first.dtype, torch.float32)  # a head under autocast gives bfloat16
        return nt_xent(F.normalize(first.to(wide), dim=1), F.normalize(second.to(wide), dim=1), self.temperature)


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.1, *, tile: int | None = None) -> Tensor:
    """Each of 2 N views picks out its other view among 2 N - 1 (SimCLR, equation 1).

    Args:
        first: Unit-norm embeddings of one view (B, D).
        second: Unit-norm embeddings of the other (B, D), paired by row.
        temperature: Divides the cosines.
        tile: Rows and columns of the similarities that exist at one time.

    Returns:
        The mean over all views in nats, a scalar; averaged over ranks it is the loss of the global batch. NaN where a feature is.

    Raises:
        ValueError: If the two batches differ in shape, or ``temperature`` is not above 0.

    Example:
        >>> x = torch.eye(2)
        >>> round(nt_xent(x, x, 1.0).item(), 4)  # ln(e + 2) - 1
        0.5514
    """
    if first.shape != second.shape:
        raise ValueError(f"views pair rows: got {tuple(first.shape)} and {tuple(second.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    sizes = distributed.gather_sizes(len(first), first.device)
    image = torch.arange(len(first), device=first.device) + sum(sizes[: distributed.rank()])
    views, image = torch.cat([first, second]), image.repeat(2)
    scale = views.new_ones(()) / temperature
    return tiled_loss(views, views, scale, math=_OtherView(), beside=[(image, image)], tile=tile)


class _OtherView(TileMath):
    """Beside the tile: the number of the image that a view is of. The matrix is symmetric, so rows are all there is."""

    two_sided = False

    def __init__(self) -> None:
        self.kinds = {"all": LogSum(), "positive": Sum()}

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        positive = (logits * self._other(tile)).sum(1)
        others = logits.clone()
        tile.pairs(others).fill_(-math.inf)
        return {"all": (log_sum(others, 1, tile.scratch), None), "positive": (positive, None)}

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        return (rows["all"] - rows["positive"]).sum()

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        g = logits.sub_(rows["all"][tile.rows, None]).exp_()
        tile.pairs(g).fill_(0.0)
        return g.sub_(self._other(tile).to(g.dtype))

    @staticmethod
    def _other(tile: Tile) -> Tensor:
        rows, columns = tile.beside[0]
        same = rows[:, None] == columns
        tile.pairs(same).fill_(False)
        return same
