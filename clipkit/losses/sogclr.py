"""The global contrastive loss, for small batches: each sample remembers how strong its negatives were in earlier batches.

`SogCLR <https://arxiv.org/abs/2202.12387>`_ (algorithm 1) in the two-sided form with a learnable temperature of FastCLIP-v3 (`FastCLIP
<https://arxiv.org/abs/2407.01445>`_, RGCL-g). With g_i = mean over j != i of exp(scale (s_ij - s_ii)), u_i <- (1 - gamma) u_i + gamma g_i,
once from each side, and tau = 1 / scale:

    loss = tau (mean ln(eps + u_image) + mean ln(eps + u_text)) / 2 + rho tau

and the gradient of ln(eps + u_i) is d g_i / (eps + u_i), SogCLR's estimator: u_i from the memory, d g_i from the batch. With gamma = 1 it is
the exact gradient of that batch's own loss. FastCLIP leaves out the half and has 2 rho.

The memory is two numbers a sample, kept as logarithms in buffers that checkpoints hold, equal on all ranks. ``batch["id"]``, the plan's stable
number of a sample, is its place. Ids at or above ``samples`` share places (id modulo samples), an approximation that is said once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.losses.base import Loss, checked_pair, pooled_of
from clipkit.losses.statistics import LogSum, log_sum
from clipkit.losses.tile import Parts, Statistics, Tile, TileMath
from clipkit.losses.tiled import tiled_loss


class SogCLR(Loss):
    """The global contrastive loss between two fields.

    Args:
        scale: Gives the inverse temperature, exponentiated.
        samples: Samples of the data set; the memory takes 8 bytes of each.
        pair: The two fields.
        gamma: Share of the current batch in the memory; FastCLIP lowers it from 1 to 0.2 over a run, here it is fixed.
        rho: Price of a high temperature; FastCLIP takes 6.5 to 16.
        eps: Keeps the logarithm finite.

    Raises:
        ValueError: If an argument is none of the allowed.
    """

    log_image: Tensor
    log_text: Tensor

    def __init__(
        self,
        scale: Callable[[], Tensor],
        samples: int,
        *,
        pair: tuple[str, str] = ("image", "text"),
        gamma: float = 0.8,
        rho: float = 6.5,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, got {gamma}")
        if eps <= 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.scale = scale
        self.pair = checked_pair(pair)
        self.gamma, self.rho, self.eps = gamma, rho, eps
        self.register_buffer("log_image", torch.full((samples,), math.nan))  # NaN: not seen yet
        self.register_buffer("log_text", torch.full((samples,), math.nan))
        self._looked = False
        self._replaced: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss and, in training, remember; in evaluation each batch stands alone."""
        if not isinstance(batch.get("id"), Tensor):
            raise ValueError("the global contrastive loss keeps its state by the batch's `id` (B,), which is missing")
        x, y = pooled_of(features, self.pair)
        scale = self.scale()
        sizes = distributed.gather_sizes(len(x), x.device)
        if sum(sizes) < 2:
            raise ValueError(f"the global contrastive loss needs at least 2 pairs in a batch, got {sum(sizes)}")
        ids = self._places(distributed.all_gather_rows(batch["id"].to(x.device), sizes))
        start = sum(sizes[: distributed.rank()])
        positive = (x.detach() * y.detach()).sum(1) * scale.detach()
        rule = _Remembered(
            self.log_image[ids[start : start + len(x)]], self.log_text[ids], self.gamma_now, self.eps, len(ids)
        )
        value = tiled_loss(x, y, scale, math=rule, beside=[(positive, positive)])
        if self.training:
            self._replaced = ids, self.log_image[ids], self.log_text[ids]
            self.log_image[ids] = distributed.all_gather_rows(rule.log_rows.to(self.log_image.dtype), sizes)
            self.log_text[ids] = rule.log_columns.to(self.log_text.dtype)
        return (value + self.rho) / scale

    def take_back_(self, skipped: Tensor) -> None:
        """Remember what was remembered before the last batch: its features may be no numbers, or it is left out."""
        replaced, self._replaced = self._replaced, None
        if replaced is not None:
            ids, *before = replaced
            for memory, old in zip((self.log_image, self.log_text), before, strict=True):
                memory[ids] = torch.where(skipped.to(old.device) != 0, old, memory[ids])

    @property
    def gamma_now(self) -> float:
        """Share of the batch: ``gamma`` in training, all of it in evaluation."""
        return self.gamma if self.training else 1.0

    def _places(self, ids: Tensor) -> Tensor:
        samples = len(self.log_image)
        if not self._looked:
            self._looked = True
            if int(ids.max()) >= samples:
                warnings.warn(
                    f"a sample has the id {int(ids.max())} and the global loss remembers {samples}: some share a memory; "
                    "set `samples` of the loss to the size of the data set",
                    stacklevel=3,
                )
        return ids.remainder(samples)


class _Remembered(TileMath):
    """Beside the tile: the logits of the pairs of its rows and of its columns."""

    def __init__(self, old_rows: Tensor, old_columns: Tensor, gamma: float, eps: float, pairs: int) -> None:
        self.kinds = {"others": LogSum()}
        self.old_rows, self.old_columns = old_rows, old_columns
        self.gamma, self.eps, self.pairs = gamma, eps, pairs
        self.log_rows = self.log_columns = old_rows

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        by_row, by_column = self._ahead(logits.clone(), tile)
        return {"others": (log_sum(by_row, 1, tile.scratch), log_sum(by_column, 0, tile.scratch))}

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        self.log_rows = self._remember(self.old_rows, rows["others"])
        self.log_columns = self._remember(self.old_columns, columns["others"])
        return (self._with_eps(self.log_rows).sum() + self._with_eps(self.log_columns[own]).sum()) / 2

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        by_row, by_column = self._ahead(logits, tile)
        left, right = self._with_eps(self.log_rows), self._with_eps(self.log_columns)
        count = math.log(self.pairs - 1)
        g = by_row.sub_(left[tile.rows, None] + count).exp_()
        g += by_column.sub_(right[tile.columns] + count).exp_()
        # every other column pulls at a row's own pair, and so does every other row
        own = slice(tile.rows.start + tile.offset, tile.rows.stop + tile.offset)
        by_pair = (rows["others"][tile.rows] - left[tile.rows] - count).exp()
        by_pair = by_pair + (columns["others"][own] - right[own] - count).exp()
        first = max(0, tile.columns.start - tile.rows.start - tile.offset)
        on = tile.pairs(g)
        on.copy_(-by_pair[first : first + len(on)])
        return g.mul_(0.5)

    @staticmethod
    def _ahead(logits: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        """Logits less those of the row's pair, and less those of the column's; minus infinity at the pairs. Overwrites ``logits``."""
        rows, columns = tile.beside[0]
        tile.pairs(logits).fill_(-math.inf)
        by_column = logits - columns
        return logits.sub_(rows[:, None]), by_column

    def _remember(self, old: Tensor, others: Tensor) -> Tensor:
        """ln((1 - gamma) u + gamma g), of a first sight ln g."""
        new = others - math.log(self.pairs - 1)
        if self.gamma == 1:
            return new
        mixed = torch.logaddexp(old.to(new.dtype) + math.log(1 - self.gamma), new + math.log(self.gamma))
        return mixed.where(~old.isnan(), new)

    def _with_eps(self, log: Tensor) -> Tensor:
        return torch.logaddexp(log, log.new_tensor(math.log(self.eps)))
