"""One figure by group: each group's, the worst, and how far apart they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.metrics.checks import require_some


class Grouped(NamedTuple):
    """A mean by group.

    Attributes:
        figures: Group to mean.
        counts: Group to number of samples.
        worst: The group with the worst mean; of equal ones the first by name.
        gap: Highest mean less lowest.
    """

    figures: dict[str, float]
    counts: dict[str, int]
    worst: str
    gap: float


def by_group(values: Tensor, groups: Sequence[str], *, smaller_is_better: bool = False) -> Grouped:
    """The mean of a per-sample figure within each group.

    Args:
        values: One number a sample (N,), or bool.
        groups: The group of each sample (N).
        smaller_is_better: Whether the highest mean is the worst, as of ranks.

    Raises:
        ValueError: If there are no samples, or not one group a sample.

    >>> by_group(torch.tensor([True, False, True]), ["city", "city", "farm"])
    Grouped(figures={'city': 0.5, 'farm': 1.0}, counts={'city': 2, 'farm': 1}, worst='city', gap=0.5)
    """
    require_some(values)
    if len(values) != len(groups):
        raise ValueError(f"one group a sample is needed: {len(values)} samples, {len(groups)} groups")
    names = sorted(set(groups))
    number = {name: place for place, name in enumerate(names)}
    place = torch.tensor([number[group] for group in groups])
    counts = torch.bincount(place)
    means = torch.bincount(place, weights=values.double().cpu()) / counts
    figures = dict(zip(names, means.tolist(), strict=True))
    worst = min(names, key=lambda name: -figures[name] if smaller_is_better else figures[name])
    gap = max(figures.values()) - min(figures.values())
    return Grouped(figures, dict(zip(names, counts.tolist(), strict=True)), worst, gap)
