"""Exact search: every row is scored, a block of rows at a time, and equal scores stand in the order of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from clipkit.embedding.write import Rows
from clipkit.metrics import cosines

BLOCK = 16_384  # rows in memory at once: 32 MiB of float64 at width 256
_QUERIES = 256


def top_k(parts: Sequence[Rows], query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest rows of each query.

    Args:
        parts: Unit-norm embeddings (N_p, D), mapped files mostly; N over all parts.
        query: Unit-norm embeddings (Q, D).
        k: How many; fewer come back where there are fewer rows.

    Returns:
        Cosines (Q, k) float32, the best first, and rows counted over all parts (Q, k) int64; of equal cosines the lowest rows.

    Raises:
        ValueError: If k is below 1, or widths differ.

    >>> rows = np.eye(3, dtype=np.float16)
    >>> top_k([rows[:2], rows[2:]], torch.tensor([[0.0, 0.6, 0.8]]), k=2)[1]
    tensor([[2, 1]])
    """
    if k < 1:
        raise ValueError(f"k={k}: at least one result")
    width = next((part.shape[1] for part in parts), query.shape[1])
    if query.shape[1] != width:
        raise ValueError(f"the query has {query.shape[1]} values, the embeddings {width}: they come from other models")
    found = [_top_k(parts, query[at : at + _QUERIES].float(), k) for at in range(0, len(query), _QUERIES)]
    return torch.cat([scores for scores, _ in found]), torch.cat([rows for _, rows in found])


def _top_k(parts: Sequence[Rows], query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores = torch.empty(len(query), 0)
    rows = torch.empty(len(query), 0, dtype=torch.int64)
    for start, block in blocks(parts):
        new = cosines(query, torch.from_numpy(np.array(block)))
        near = _best(new, k)
        scores = torch.cat([scores, new.gather(1, near)], 1)
        rows = torch.cat([rows, near + start], 1)
        scores, rows = _ordered(scores, rows, k)
    return scores, rows


def blocks(parts: Iterable[Rows]) -> Iterator[tuple[int, Rows]]:
    """Each block of rows, with the number of its first row over all parts."""
    start = 0
    for part in parts:
        for at in range(0, len(part), BLOCK):
            block = part[at : at + BLOCK]
            yield start, block
            start += len(block)


def _best(scores: Tensor, k: int) -> Tensor:
    """Columns (Q, k) of the best scores (Q, B); of those equal to the last one, the lowest columns."""
    k = min(k, scores.shape[1])
    values, columns = scores.topk(k, dim=1)
    last = values[:, -1:]
    for row in ((scores >= last).sum(1) > k).nonzero().squeeze(1).tolist():  # topk takes any of what ties with the last
        above = (scores[row] > last[row]).nonzero().squeeze(1)
        equal = (scores[row] == last[row]).nonzero().squeeze(1)
        columns[row] = torch.cat([above, equal[: k - len(above)]])
    return columns


def _ordered(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best, the best first, of equal ones the lowest rows first."""
    by_row = rows.argsort(dim=1)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, by_score), rows.gather(1, by_score)
