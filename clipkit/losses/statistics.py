"""How the statistics of a tile become those of a whole row or column: by tile, then over ranks.

A statistic of n rows is a tensor (n,), or (2, n) where it is a pair of numbers a row. Each kind knows its empty value, how a further part is
merged into it, and how it is combined over ranks. Log-sum-exps keep a running maximum inside ``logaddexp``, so that no scale overflows
them and no gap underflows them to zero (`Milakov & Gimelshein <https://arxiv.org/abs/1805.02867>`_, algorithm 3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipkit import distributed


class Statistic:
    """One kind of statistic; subclasses fill in the methods."""

    def empty(self, n: int, like: Tensor) -> Tensor:
        """The value before any part, (n,) or (2, n)."""
        raise NotImplementedError

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """The value of two parts together."""
        raise NotImplementedError

    def over_ranks(self, total: Tensor) -> Tensor:
        """The value of all ranks' parts together, on every rank."""
        raise NotImplementedError


class Sum(Statistic):
    """A sum (n,)."""

    def empty(self, n: int, like: Tensor) -> Tensor:
        """Before any part."""
        return like.new_zeros(n)

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """Two parts together."""
        return total + part

    def over_ranks(self, total: Tensor) -> Tensor:
        """All ranks together."""
        return distributed.all_reduce_(total)


class LogSum(Statistic):
    """The logarithm of a sum of exponentials (n,)."""

    def empty(self, n: int, like: Tensor) -> Tensor:
        """Before any part."""
        return like.new_full((n,), -math.inf)

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """Two parts together."""
        return torch.logaddexp(total, part)

    def over_ranks(self, total: Tensor) -> Tensor:
        """All ranks together."""
        top = distributed.all_reduce_(total.clone(), "max")
        top = top.where(top > -math.inf, 0.0)  # a column in which nothing counts anywhere
        return top + distributed.all_reduce_((total - top).exp()).log()


class SoftMean(Statistic):
    """A log-sum-exp and the mean of something under that softmax (2, n)."""

    def empty(self, n: int, like: Tensor) -> Tensor:
        """Before any part."""
        return torch.stack([like.new_full((n,), -math.inf), like.new_zeros(n)])

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """Two parts together."""
        both = torch.logaddexp(total[0], part[0])
        return torch.stack([both, total[1] * (total[0] - both).exp() + part[1] * (part[0] - both).exp()])

    def over_ranks(self, total: Tensor) -> Tensor:
        """All ranks together."""
        both = LogSum().over_ranks(total[0].clone())
        return torch.stack([both, distributed.all_reduce_(total[1] * (total[0] - both).exp())])


class ArgMax(Statistic):
    """The largest value and where it stands (2, n); of equal values the first. Places are exact up to 2^24 in float32."""

    def empty(self, n: int, like: Tensor) -> Tensor:
        """Before any part."""
        return torch.stack([like.new_full((n,), -math.inf), like.new_full((n,), math.inf)])

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """Two parts together."""
        better = (part[0] > total[0]) | ((part[0] == total[0]) & (part[1] < total[1]))
        return part.where(better, total)

    def over_ranks(self, total: Tensor) -> Tensor:
        """All ranks together."""
        top = distributed.all_reduce_(total[0].clone(), "max")
        place = total[1].where(total[0] == top, math.inf)
        return torch.stack([top, distributed.all_reduce_(place, "min")])


def log_sum(x: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """Log-sum-exp of a tile (r, c) along ``dim`` without further memory: ``scratch`` (r, c) is overwritten; minus infinity where all are.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1000.0, 0.0]])
        >>> log_sum(x, 1, torch.empty_like(x))
        tensor([6.9315e-01, 1.0000e+03])
    """
    top = x.amax(dim, keepdim=True)
    top = top.where(top > -math.inf, 0.0)
    return torch.sub(x, top, out=scratch).exp_().sum(dim).log_().add_(top.squeeze(dim))
