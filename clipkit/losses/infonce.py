"""InfoNCE over pairs of fields, as CLIP trains with it.

Each row must pick out its own column among those of all ranks, and each column its own row: the mean of two cross entropies
(`CLIP <https://arxiv.org/abs/2103.00020>`_, figure 3; `van den Oord et al. <https://arxiv.org/abs/1807.03748>`_, equation 4).

With ``duplicates: positives`` the target of a row is spread evenly over all columns equal to it (`SupCon <https://arxiv.org/abs/2004.11362>`_,
equation 2). Label smoothing spreads a share of it over all columns (`Szegedy et al. <https://arxiv.org/abs/1512.00567>`_, section 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
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
from clipkit.losses.statistics import LogSum, Sum, log_sum
from clipkit.losses.tile import Parts, Prefixes, Statistics, Tile, TileMath
from clipkit.losses.tiled import tiled_loss

Sides = Literal["both", "first", "second"]


class InfoNCE(Loss):
    """Symmetric cross entropy between two fields.

    Args:
        scale: Gives the inverse temperature, exponentiated (a ``LogitScale``; its ``forward`` where several losses share it).
        pair: The two fields.
        sides: Whether both fields pick their partner, or only the first (image to text) or the second.
        label_smoothing: Share of the target spread over all columns that count, in [0, 1).
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
        *,
        pair: tuple[str, str] = ("image", "text"),
        sides: Sides = "both",
        label_smoothing: float = 0.0,
        duplicates: Duplicates = "negatives",
        prefixes: Mapping[int, float] | None = None,
        exchange: Exchange | None = None,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        check_duplicates(duplicates)
        if tile is not None and tile < 1:
            raise ValueError(f"tile must be at least 1, got {tile}")
        if sides not in ("both", "first", "second"):
            raise ValueError(f"sides must be both, first or second, got {sides!r}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        self.scale = scale
        self.pair = checked_pair(pair)
        self.sides: Sides = sides
        self.label_smoothing = label_smoothing
        self.duplicates: Duplicates = duplicates
        self.prefixes = None if prefixes is None else Prefixes.of(prefixes)
        self.exchange = exchange
        self.tile = tile
        self._repeats = RepeatWarning()

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of this rank's pairs against every rank's."""
        x, y = pooled_of(features, self.pair)
        keys = None
        if self.duplicates == "negatives":
            self._repeats.look(batch)
        else:
            keys = sameness_keys(batch, self.pair, len(x), x.device)
        return infonce(
            x,
            y,
            self.scale(),
            sides=self.sides,
            label_smoothing=self.label_smoothing,
            duplicates=self.duplicates,
            keys=keys,
            prefixes=self.prefixes,
            exchange=self.exchange,
            tile=self.tile,
        )


def infonce(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    sides: Sides = "both",
    label_smoothing: float = 0.0,
    duplicates: Duplicates = "negatives",
    keys: Tensor | None = None,
    prefixes: Prefixes | None = None,
    exchange: Exchange | None = None,
    tile: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE of this rank's pairs against every rank's negatives (CLIP, figure 3).

    Args:
        image: Unit-norm image embeddings (B, D), float32 or float64.
        text: Unit-norm text embeddings (B, D), paired with ``image`` by row.
        scale: Inverse temperature, a positive scalar, already exponentiated.
        sides: Both cross entropies, halved, or one: ``first``, images pick texts; ``second``, texts pick images.
        label_smoothing: Share of each target that is spread over all columns that count.
        duplicates: What rows that agree in any of ``keys`` are to each other.
        keys: int64 (B, K); rows i and j are the same thing where any of the K agrees.
        prefixes: Leading widths to take as embeddings; the result is their weighted sum.
        exchange: How features of other ranks come here; None gathers them.
        tile: Rows and columns of the logits that exist at one time.

    Returns:
        The mean loss in nats, a scalar; averaged over ranks it is the loss of the global batch. NaN where a feature is.

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
    if sides == "second":
        image, text = text, image
    return tiled_loss(
        image,
        text,
        scale,
        math=_CrossEntropy(duplicates, label_smoothing, two_sided=sides == "both"),
        beside=beside_of(duplicates, keys),
        prefixes=prefixes,
        exchange=exchange,
        tile=tile,
    )


class _CrossEntropy(TileMath):
    """Cross entropy by row and, where two-sided, by column; positives are the pairs, or all equal ones."""

    def __init__(self, duplicates: Duplicates, smoothing: float, *, two_sided: bool) -> None:
        self.duplicates, self.smoothing, self.two_sided = duplicates, smoothing, two_sided
        self.kinds = {"all": LogSum(), "positive": Sum()}
        if duplicates == "positives":
            self.kinds["count"] = Sum()
        if smoothing:
            self.kinds |= {"sum": Sum(), "valid": Sum()}

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        logits, same = self._read(logits, tile)
        by_row = self._along(1, logits, same, tile)
        by_column = self._along(0, logits, same, tile) if self.two_sided else {}
        return {name: (part, by_column.get(name)) for name, part in by_row.items()}

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        total = rows["all"].new_zeros(())
        for side in [rows, {name: part[own] for name, part in columns.items()}] if self.two_sided else [rows]:
            positive = side["positive"] / side["count"] if "count" in side else side["positive"]
            total += (side["all"] - (1 - self.smoothing) * positive).sum()
            if self.smoothing:
                total -= self.smoothing * (side["sum"] / side["valid"]).sum()
        return total / 2 if self.two_sided else total

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        logits, same = self._read(logits, tile)
        valid = logits > -math.inf if self.smoothing else None
        sides = [{name: part[tile.rows, None] for name, part in rows.items()}]
        if self.two_sided:
            sides.append({name: part[None, tile.columns] for name, part in columns.items()})
            by_column = torch.sub(logits, sides[1]["all"], out=tile.scratch).exp_()
            g = logits.sub_(sides[0]["all"]).exp_().add_(by_column)
        else:
            g = logits.sub_(sides[0]["all"]).exp_()
        for side in sides:
            if same is None:
                tile.pairs(g).sub_(1 - self.smoothing)
            else:
                g -= same * ((1 - self.smoothing) / side["count"])
            if valid is not None:
                g -= valid * (self.smoothing / side["valid"])
        return g.mul_(0.5) if self.two_sided else g

    def _read(self, logits: Tensor, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """The logits, minus infinity where they do not count, and where the positives are if not only the pairs are."""
        if self.duplicates == "ignore":
            return without_duplicates(logits, tile), None
        return logits, equal_pairs(tile) if self.duplicates == "positives" else None

    def _along(self, dim: int, logits: Tensor, same: Tensor | None, tile: Tile) -> dict[str, Tensor]:
        """The statistics by row (dim 1) or by column (dim 0)."""
        found = {"all": log_sum(logits, dim, tile.scratch)}
        if same is None:
            found["positive"] = tile.along(dim, tile.pairs(logits))
        else:
            found |= {"positive": (logits * same).sum(dim), "count": same.sum(dim, dtype=logits.dtype)}
        if self.smoothing:
            valid = logits > -math.inf
            found |= {"sum": logits.where(valid, 0.0).sum(dim), "valid": valid.sum(dim, dtype=logits.dtype)}
        return found
