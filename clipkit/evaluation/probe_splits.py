"""Which rows a probe is fitted on and which it is chosen by: seeded, the same share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_FOLDS = 4


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows in two, class by class; a class keeps at least one row in the first part.

    Args:
        labels: Class of each row (N,), int64.
        share: Share of a class for the second part, rounded.
        seed: Of the draw.

    Returns:
        Numbers of the rows of both parts, ascending, int64.
    """
    first, second = [], []
    for rows in _shuffled(labels, seed):
        count = min(round(share * len(rows)), len(rows) - 1)
        first.append(rows[count:])
        second.append(rows[:count])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def few_shot(labels: Tensor, shots: int, seed: int, names: Sequence[str]) -> Tensor:
    """``shots`` rows of each class that occurs; fewer shots are a part of more.

    Args:
        labels: Class of each row (N,), int64.
        shots: Rows a class.
        seed: Of the draw.
        names: Name of each class, for the message.

    Returns:
        Their numbers, ascending, int64.

    Raises:
        ValueError: If a class has fewer rows.
    """
    chosen = []
    for rows in _shuffled(labels, seed):
        if len(rows) < shots:
            name = names[int(labels[rows[0]])]
            raise ValueError(f"{shots} shots: the class {name!r} has {len(rows)} training images; ask for fewer shots")
        chosen.append(rows[:shots])
    return torch.cat(chosen).sort().values


def folds_of(labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Folds for the choice within few rows: each row is looked at once, by a fit that has not seen it.

    Four folds, or as many as the smallest class has rows; none where a class has a single row, and with it nothing to
    look at.

    Args:
        labels: Class of each row (N,), int64.
        seed: Of the draw.
    """
    shuffled = _shuffled(labels, seed)
    count = min(MOST_FOLDS, *(len(rows) for rows in shuffled))
    if count < 2:
        return []
    folds = []
    for fold in range(count):
        seen = torch.cat([rows[torch.arange(len(rows)) % count != fold] for rows in shuffled])
        held_out = torch.cat([rows[torch.arange(len(rows)) % count == fold] for rows in shuffled])
        folds.append((seen.sort().values, held_out.sort().values))
    return folds


def _shuffled(labels: Tensor, seed: int) -> list[Tensor]:
    """The rows of each class that occurs, in a drawn order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    return [order[labels[order] == label] for label in torch.unique(labels)]
