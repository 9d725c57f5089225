"""Scores of embeddings in which equal rows tie exactly, and exact counts of them at the price of a float32 product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

TILE = 1024  # rows and columns of scores held at once: 1024 x 1024 float32 is 4 MiB
_UNIT = 2.0**-24  # half the distance from 1 to the next float32
_FEW = 64  # one score in so many is cheaper to compute again by itself
_PAIRED = 2**19  # numbers of float64 gathered at once: 4 MiB
_TINY = 2.0**-126  # the smallest normal float32: what a processor that flushes to zero may lose


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Scores of every row of ``a`` against every row of ``b``, such that equal rows tie exactly.

    A float32 matrix product rounds by its blocking, so two copies of one image could differ in the last bit and a tie
    would be decided by luck. Here sums are float64 and are rounded once, at the end.

    Args:
        a: Unit-norm embeddings (N, D).
        b: Unit-norm embeddings (M, D).

    Returns:
        Cosines (N, M), float32.

    >>> cosines(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    tensor([[0.6000, 0.0000]])
    """
    return (a.double() @ b.double().T).float()


def paired_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of matching rows, (N, D) with (N, D) to (N,), rounded as in ``cosines``."""
    return (a.double() * b.double()).sum(1).float()


def tiles(length: int, tile: int) -> list[slice]:
    """Consecutive slices of at most ``tile`` that cover ``length``."""
    return [slice(start, min(start + tile, length)) for start in range(0, length, tile)]


def band(a: Tensor, b: Tensor, tile: int) -> float:
    """How far a float32 product of rows of ``a`` and ``b`` can lie from ``cosines``.

    A sum of D products in any order is off by at most ``D u |a| |b|`` and a little (Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1); eight units more pay for rounding the score and the threshold's edges.

    Args:
        a: Embeddings (N, D).
        b: Embeddings (M, D).
        tile: Rows whose norms are computed at once.
    """
    norms = [
        max((float(x[rows].double().norm(dim=1).max()) for rows in tiles(len(x), tile)), default=0.0) for x in (a, b)
    ]
    return (a.shape[1] + 8) * (_UNIT * norms[0] * norms[1] * 1.001 + _TINY)


class Counter:
    """Counts, in one tile of scores, how many reach a threshold, exactly as ``cosines`` would.

    Scores are a float32 product. Those nearer to their threshold than ``band`` are computed again in float64, so the
    count is that of the slow way, ties included.

    Args:
        rows: The most rows of a tile.
        columns: The most columns of a tile.
        band: What ``band`` says of all embeddings.
        device: Where the embeddings are.
    """

    def __init__(self, rows: int, columns: int, band: float, device: torch.device) -> None:
        self.band = band
        # Kept from tile to tile: made anew each time, they leave holes in the heap that grow with the number of tiles.
        self._scores, self._flags = (torch.empty(rows * columns, device=device) for _ in range(2))
        self._ones = torch.ones(max(rows, columns), device=device)

    def load(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the scores of a tile, free to be overwritten where something is not to be counted.

        Args:
            a: The tile's rows (A, D).
            b: The tile's columns (B, D).

        Returns:
            (A, B) float32, valid until the next tile.
        """
        self._a, self._b = a, b
        shape = len(a), len(b)
        self._tile = self._scores[: shape[0] * shape[1]].view(shape)
        self._marks = self._flags[: shape[0] * shape[1]].view(shape)
        with _full_float32():
            torch.mm(a.float(), b.float().T, out=self._tile)
        return self._tile

    def in_rows(self, least: Tensor) -> Tensor:
        """For each of the first R rows, how many scores reach its threshold (R,), float32 whole numbers."""
        return self._count(self._a, self._b, self._tile[: len(least)], self._marks[: len(least)], least)

    def in_columns(self, least: Tensor) -> Tensor:
        """For each column, how many scores reach its threshold (B,), float32 whole numbers."""
        return self._count(self._b, self._a, self._tile.T, self._marks.T, least)

    def _count(self, a: Tensor, b: Tensor, scores: Tensor, flags: Tensor, least: Tensor) -> Tensor:
        low, high = least - self.band, least + self.band
        one = self._ones[: scores.shape[1]]
        # Flags as float32, summed by a product: three times as fast as booleans and their sum.
        maybe = torch.ge(scores, low[:, None], out=flags) @ one
        sure = torch.ge(scores, high[:, None], out=flags) @ one
        rows = (maybe != sure).nonzero().squeeze(1)  # those with a score too near to tell
        if not len(rows):
            return sure
        some = scores[rows]
        near = (some >= low[rows, None]) & (some < high[rows, None])
        row, column = near.nonzero(as_tuple=True)
        if len(row) * _FEW > near.numel():  # many ties: the slow way for all of these rows
            found = (near & (cosines(a[rows], b) >= least[rows, None])).sum(1)
            return sure.index_add_(0, rows, found.to(sure.dtype))
        at_once = max(1, _PAIRED // a.shape[1])
        for start in range(0, len(row), at_once):
            of, other = rows[row[start : start + at_once]], column[start : start + at_once]
            reached = paired_cosines(a[of], b[other]) >= least[of]
            sure.index_add_(0, of, reached.to(sure.dtype))
        return sure


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32 products, whatever training chose: the band would not hold."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
