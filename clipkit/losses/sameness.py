"""Which samples of a batch are the same thing, and what that makes them to each other.

Where a batch holds a caption, an image or a label twice, its copies are not negatives. ``duplicates`` says what they are: ``negatives``, as
CLIP takes them; ``ignore``, left out; ``positives`` (`SupCon <https://arxiv.org/abs/2004.11362>`_).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.losses.tile import Beside, Tile

Duplicates = Literal["negatives", "ignore", "positives"]


def check_duplicates(duplicates: str) -> None:
    """Refuse another word."""
    if duplicates not in ("negatives", "ignore", "positives"):
        raise ValueError(f"duplicates must be negatives, ignore or positives, got {duplicates!r}")


def sameness_keys(batch: Mapping[str, Any], pair: tuple[str, str], rows: int, device: torch.device) -> Tensor:
    """What makes two samples the same thing, int64 (B, K): id, the content of either field, the label where there is one."""
    content = batch.get("content", {})
    named = [batch.get("id"), *(content.get(name) for name in pair), batch.get("label")]
    known = [key.to(device) for key in named if key is not None]
    if not known:
        raise ValueError("duplicates other than 'negatives' need a batch with id, content or label; this one has none")
    return torch.stack(known, dim=1) if rows else torch.empty(0, len(known), dtype=torch.int64, device=device)


def beside_of(duplicates: Duplicates, keys: Tensor | None) -> Beside:
    """The keys, by row and by column, where they count."""
    if duplicates == "negatives":
        return ()
    if keys is None:
        raise ValueError(f"duplicates={duplicates!r} needs keys that say which rows are the same")
    return [(keys, keys)]


def equal_pairs(tile: Tile) -> Tensor:
    """True (r, c) where row and column agree in any key; the first tensors beside the tile are the keys."""
    rows, columns = tile.beside[0]
    same = rows[:, None, 0] == columns[None, :, 0]
    for k in range(1, rows.shape[1]):
        same |= rows[:, None, k] == columns[None, :, k]
    return same


def without_duplicates(logits: Tensor, tile: Tile) -> Tensor:
    """A copy of the logits with minus infinity at duplicates, pairs themselves kept."""
    same = equal_pairs(tile)
    tile.pairs(same).fill_(False)
    return logits.masked_fill(same, -math.inf)


class RepeatWarning:
    """Says once that a batch holds a sample several times although its copies are taken as negatives."""

    def __init__(self) -> None:
        self._looked = False

    def look(self, batch: Mapping[str, Any]) -> None:
        """Count the ids of the first batch, over all ranks; later ones are not asked for, since a GPU would have to wait."""
        if self._looked or batch.get("id") is None:
            return
        self._looked = True
        ids = torch.cat(distributed.all_gather_variable(batch["id"]))
        again = len(ids) - len(torch.unique(ids))
        if again:
            warnings.warn(
                f"{again} of {len(ids)} samples of the first batch repeat another's id and are taken as its negatives; "
                "set `duplicates: ignore` or `duplicates: positives`, or a smaller data.batch_size",
                stacklevel=3,
            )
