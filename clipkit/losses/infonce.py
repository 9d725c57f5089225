"""InfoNCE over pairs of fields, as CLIP trains with it.

Each row must pick out its own column among those of all ranks, and each column its own row: the mean of two cross entropies
(`CLIP <https://arxiv.org/abs/2103.00020>`_, figure 3; `van den Oord et al. <https://arxiv.org/abs/1807.03748>`_, equation 4).

Where a batch holds a caption, an image or a label twice, its copies are not negatives. ``duplicates`` says what they are; with ``positives``
the target of a row is spread evenly over all columns equal to it (`SupCon <https://arxiv.org/abs/2004.11362>`_, equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.losses.base import Loss
from clipkit.losses.tiled import Statistics, Tile, TileMath, tiled_loss

Duplicates = Literal["negatives", "ignore", "positives"]


class InfoNCE(Loss):
    """Symmetric cross entropy between two fields.

    Args:
        scale: Gives the inverse temperature, exponentiated (a ``LogitScale``; its ``forward`` where several losses share it).
        pair: The two fields.
        duplicates: What pairs with an equal id, content or label are to each other.
        tile: Rows and columns of the logits that exist at one time.

    Raises:
        ValueError: If ``pair`` does not name two fields, or ``duplicates`` or ``tile`` is none of the allowed.
    """

    def __init__(
        self,
        scale: Callable[[], Tensor],
        *,
        pair: tuple[str, str] = ("image", "text"),
        duplicates: Duplicates = "negatives",
        tile: int = 4096,
    ) -> None:
        super().__init__()
        if len(pair) != 2:
            raise ValueError(f"pair must name two fields, got {pair}")
        if duplicates not in ("negatives", "ignore", "positives"):
            raise ValueError(f"duplicates must be negatives, ignore or positives, got {duplicates!r}")
        if tile < 1:
            raise ValueError(f"tile must be at least 1, got {tile}")
        self.scale = scale
        self.pair = pair
        self.duplicates: Duplicates = duplicates
        self.tile = tile

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of this rank's pairs against every rank's."""
        x, y = (features[name].pooled for name in self.pair)
        keys = None if self.duplicates == "negatives" else sameness_keys(batch, self.pair, len(x), x.device)
        return infonce(x, y, self.scale(), duplicates=self.duplicates, keys=keys, tile=self.tile)


def infonce(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    duplicates: Duplicates = "negatives",
    keys: Tensor | None = None,
    tile: int = 4096,
) -> Tensor:
    """Symmetric InfoNCE of this rank's pairs against every rank's negatives (CLIP, figure 3).

    Args:
        image: Unit-norm image embeddings (B, D), float32 or float64.
        text: Unit-norm text embeddings (B, D), paired with ``image`` by row.
        scale: Inverse temperature, a positive scalar, already exponentiated.
        duplicates: What rows that agree in any of ``keys`` are to each other.
        keys: int64 (B, K); rows i and j are the same thing where any of the K agrees.
        tile: Rows and columns of the logits that exist at one time.

    Returns:
        The mean loss in nats, a scalar; averaged over ranks it is the loss of the global batch.

    Raises:
        ValueError: If the two batches differ in shape, or ``duplicates`` needs keys and there are none.

    Example:
        >>> x = torch.eye(4)
        >>> round(infonce(x, x, torch.tensor(100.0)).item(), 4)
        0.0
        >>> same = torch.zeros(4, 1, dtype=torch.int64)  # four copies of one thing, spread evenly: ln 4
        >>> round(infonce(x[:1].repeat(4, 1), x[:1].repeat(4, 1), torch.tensor(1.0), duplicates="positives", keys=same).item(), 4)
        1.3863
    """
    if image.shape != text.shape:
        raise ValueError(f"InfoNCE pairs rows: got {tuple(image.shape)} and {tuple(text.shape)}; both must be (B, D)")
    if duplicates != "negatives" and keys is None:
        raise ValueError(f"duplicates={duplicates!r} needs keys that say which rows are the same")
    sizes = distributed.gather_sizes(len(image), image.device)
    if sum(sizes) == 0:
        raise ValueError("InfoNCE of an empty batch: no rank has a pair")
    everyone = None if keys is None else distributed.all_gather_rows(keys, sizes)
    return tiled_loss(image, text, scale, None, math=_CrossEntropy(duplicates, keys, everyone), sizes=sizes, tile=tile)


def sameness_keys(batch: Mapping[str, Any], pair: tuple[str, str], rows: int, device: torch.device) -> Tensor:
    """What makes two samples the same thing, int64 (B, K): id, the content of either field, the label where there is one."""
    content = batch.get("content", {})
    named = [batch.get("id"), *(content.get(name) for name in pair), batch.get("label")]
    known = [key.to(device) for key in named if key is not None]
    if not known:
        raise ValueError("duplicates other than 'negatives' need a batch with id, content or label; this one has none")
    return torch.stack(known, dim=1) if rows else torch.empty(0, len(known), dtype=torch.int64, device=device)


class _CrossEntropy(TileMath):
    """Cross entropy by row and by column; positives are the diagonal, or all equal pairs."""

    def __init__(self, duplicates: Duplicates, keys: Tensor | None, everyone: Tensor | None) -> None:
        self.duplicates = duplicates
        self.keys = keys
        self.everyone = everyone
        self.log_sums = ("all",)
        self.sums = ("positive", "count")

    def statistics(self, logits: Tensor, tile: Tile) -> dict[str, tuple[Tensor, Tensor]]:
        logits, positive = self._masked(logits, tile)
        chosen = logits.where(positive, 0.0)
        return {
            "all": (logits.logsumexp(1), logits.logsumexp(0)),
            "positive": (chosen.sum(1), chosen.sum(0)),
            "count": (positive.sum(1).to(logits.dtype), positive.sum(0).to(logits.dtype)),
        }

    def loss(self, rows: Statistics, columns: Statistics) -> Tensor:
        by_row = rows["all"] - rows["positive"] / rows["count"]
        by_column = columns["all"] - columns["positive"] / columns["count"]
        return (by_row.sum() + by_column.sum()) / 2

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        logits, positive = self._masked(logits, tile)
        softmax = (logits - rows["all"][tile.rows, None]).exp() + (logits - columns["all"][None, tile.columns]).exp()
        share = 1 / rows["count"][tile.rows, None] + 1 / columns["count"][None, tile.columns]
        return (softmax - share.where(positive, 0.0)) / 2

    def _masked(self, logits: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        """The logits that count, minus infinity elsewhere, and where the positives are."""
        pair = tile.diagonal(logits.device)
        if self.keys is None or self.everyone is None or self.duplicates == "negatives":
            return logits, pair
        columns = self.everyone[tile.columns]
        same = pair.clone()
        for k in range(columns.shape[1]):
            same |= self.keys[tile.rows, k, None] == columns[None, :, k]
        if self.duplicates == "positives":
            return logits, same
        return logits.masked_fill(same & ~pair, -math.inf), pair
