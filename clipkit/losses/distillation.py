"""Distillation: the student's similarities learn from a teacher's.

The Kullback-Leibler divergence from the teacher's distribution over a row (and over a column) of the global similarity matrix to the student's,
the mean of both directions (`CLIP-KD <https://arxiv.org/abs/2307.12732>`_, equation 3; `MobileCLIP <https://arxiv.org/abs/2311.17049>`_,
equation 3; open_clip's ``DistillClipLoss`` differs from it by the teacher's entropy, which has no gradient). For several teachers give
several losses: the gradient of the mean of their divergences is that of the divergence from their mean distribution.

The teacher's embeddings are read from the features where a frozen tower makes them (live), else from the batch where they were stored
with the samples. They get no gradient. Teacher and student may differ in width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.losses.base import Loss, checked_pair, pooled_of
from clipkit.losses.exchange import Exchange
from clipkit.losses.statistics import LogSum, SoftMean, Statistic, log_sum
from clipkit.losses.tile import Parts, Prefixes, Statistics, Tile, TileMath
from clipkit.losses.tiled import tiled_loss


class Distillation(Loss):
    """Divergence of the student's similarities between two fields from a teacher's.

    Args:
        scale: Gives the student's inverse temperature, exponentiated.
        pair: The two fields.
        teacher: Names of the teacher's embeddings of the two fields, among the features or in the batch.
        teacher_scale: The teacher's inverse temperature; MobileCLIP takes 100.
        prefixes: Leading widths of the student that are trained as embeddings of their own, each with its weight; None for the whole.
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
        teacher: tuple[str, str] = ("teacher_image", "teacher_text"),
        teacher_scale: float = 100.0,
        prefixes: Mapping[int, float] | None = None,
        exchange: Exchange | None = None,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        if teacher_scale <= 0:
            raise ValueError(f"teacher_scale must be above 0, got {teacher_scale}")
        self.scale = scale
        self.pair = checked_pair(pair)
        self.teacher = checked_pair(teacher)
        self.teacher_scale = teacher_scale
        self.prefixes = None if prefixes is None else Prefixes.of(prefixes)
        self.exchange = exchange
        self.tile = tile

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the divergence of this rank's rows and columns."""
        x, y = pooled_of(features, self.pair)
        teacher_x, teacher_y = (self._of_teacher(name, features, batch) for name in self.teacher)
        return distillation(
            x,
            y,
            self.scale(),
            teacher_x,
            teacher_y,
            self.teacher_scale,
            prefixes=self.prefixes,
            exchange=self.exchange,
            tile=self.tile,
        )

    @staticmethod
    def _of_teacher(name: str, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        if name in features:
            pooled: Tensor = features[name].pooled
            return pooled.detach()
        if not isinstance(batch.get(name), Tensor):
            raise ValueError(
                f"distillation reads the teacher's embeddings {name!r}; neither a tower nor the batch has them"
            )
        return F.normalize(batch[name].float(), dim=1)  # stored ones are often half precision, no longer of unit norm


def distillation(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: float,
    *,
    prefixes: Prefixes | None = None,
    exchange: Exchange | None = None,
    tile: int | None = None,
) -> Tensor:
    """KL(teacher || student) over rows and over columns of the global similarity matrices, halved (MobileCLIP, equation 3).

    Args:
        image: Unit-norm image embeddings of the student (B, D).
        text: Unit-norm text embeddings of the student (B, D).
        scale: The student's inverse temperature, a positive scalar.
        teacher_image: Unit-norm image embeddings of the teacher (B, E), no gradient.
        teacher_text: Unit-norm text embeddings of the teacher (B, E), no gradient.
        teacher_scale: The teacher's inverse temperature.
        prefixes: Leading widths of the student to take as embeddings; the result is their weighted sum.
        exchange: How features of other ranks come here; None gathers them.
        tile: Rows and columns of the logits that exist at one time.

    Returns:
        The mean divergence in nats, a scalar, at least 0; averaged over ranks it is that of the global batch. NaN where a feature is.

    Raises:
        ValueError: If batches differ in length, or the two of the teacher in width.

    Example:
        >>> x = torch.eye(3)
        >>> abs(distillation(x, x, torch.tensor(5.0), x, x, 5.0).item()) < 1e-6  # the student is the teacher
        True
    """
    if teacher_image.shape != teacher_text.shape or len(teacher_image) != len(image):
        raise ValueError(
            f"teacher and student pair rows: got {tuple(teacher_image.shape)} and {tuple(teacher_text.shape)} of the teacher "
            f"for {len(image)} rows of the student"
        )
    width = torch.promote_types(image.dtype, torch.float32)
    first, second = teacher_image.detach().to(width) * teacher_scale, teacher_text.detach().to(width)
    beside = [(first, second)]
    math = _Divergence()
    return tiled_loss(image, text, scale, math=math, beside=beside, prefixes=prefixes, exchange=exchange, tile=tile)


class _Divergence(TileMath):
    """Beside the tile: the teacher's embeddings, its scale in those of the rows."""

    def __init__(self) -> None:
        self.kinds: dict[str, Statistic] = {"teacher": SoftMean(), "student": LogSum()}

    def statistics(self, logits: Tensor, tile: Tile) -> Parts:
        rows, columns = tile.beside[0]
        teacher = rows @ columns.T
        ahead = teacher - logits

        def soft_mean(dim: int) -> Tensor:
            total = log_sum(teacher, dim, tile.scratch)
            share = torch.sub(teacher, total.unsqueeze(dim), out=tile.scratch).exp_()
            return torch.stack([total, share.mul_(ahead).sum(dim)])

        return {
            "teacher": (soft_mean(1), soft_mean(0)),
            "student": (log_sum(logits, 1, tile.scratch), log_sum(logits, 0, tile.scratch)),
        }

    def loss(self, rows: Statistics, columns: Statistics, own: slice) -> Tensor:
        sides = (rows, {name: part[..., own] for name, part in columns.items()})
        # sum of p (log p - log q) = mean of (teacher - student) - lse(teacher) + lse(student)
        parts = [side["teacher"][1] - side["teacher"][0] + side["student"] for side in sides]
        return (parts[0].sum() + parts[1].sum()) / 2

    def dlogits(self, logits: Tensor, tile: Tile, rows: Statistics, columns: Statistics) -> Tensor:
        mine, theirs = tile.beside[0]
        teacher = mine @ theirs.T
        by_column = torch.sub(logits, columns["student"][tile.columns], out=tile.scratch).exp_()
        g = logits.sub_(rows["student"][tile.rows, None]).exp_().add_(by_column)
        by_column = torch.sub(teacher, columns["teacher"][0, tile.columns], out=tile.scratch).exp_()
        return g.sub_(by_column).sub_(teacher.sub_(rows["teacher"][0, tile.rows, None]).exp_()).mul_(0.5)
