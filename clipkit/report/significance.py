"""Paired tests of two runs' figures, by resampling independent units; intervals are those of ``clipkit.evaluation.intervals``.

A unit is a sample, or a cluster of them: the captions of one image are not independent of each other, so they flip together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from clipkit.evaluation.intervals import bootstrap_interval

FLIPS = 10_000


class Paired(NamedTuple):
    """Two encoders on the same units."""

    difference: float
    """Mean of the second minus mean of the first."""
    low: float | None
    """Lower end of the 95 % interval (percentile bootstrap over units); None with fewer than two units."""
    high: float | None
    """Upper end."""
    p: float
    """Two-sided p of the sign-flip permutation test over units."""
    units: int
    """How many units there are."""


def paired(
    first: Tensor,
    second: Tensor,
    *,
    clusters: Tensor | None = None,
    strata: Tensor | None = None,
    seed: int = 0,
) -> Paired:
    """The difference of two means over the same units, its interval, and how easily chance alone gives as much.

    Under the null hypothesis the two encoders are alike, so each unit's difference might as well have the other sign;
    p is the share of 10,000 random choices of signs whose total is at least as far from 0, the observed one counted in.

    Args:
        first: Values of the first encoder (N,).
        second: Values of the second (N,), in the same order.
        clusters: The cluster of each value (N,), int64, which is then the unit; unset: each is its own.
        strata: The stratum of each value (N,), int64, where the figure is the mean over strata of the mean within.
        seed: Of the draws.

    Raises:
        ValueError: If the two differ in length.

    >>> import torch
    >>> paired(torch.zeros(10), torch.ones(10)).difference
    1.0
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} outcomes are not paired; evaluate both runs on one set")
    difference = second.double() - first.double()
    low, high = bootstrap_interval(difference, seed=seed, clusters=clusters, strata=strata) or (None, None)
    weighted = difference.numpy() / len(difference)
    if strata is not None:
        sizes = np.bincount(strata.numpy())
        weighted = difference.numpy() / (sizes[strata.numpy()] * np.count_nonzero(sizes))
    place = np.arange(len(weighted))
    if clusters is not None:
        _, place = np.unique(clusters.numpy(), return_inverse=True)
    units: np.ndarray[Any, Any] = np.bincount(place, weights=weighted)
    return Paired(float(units.sum()), low, high, _sign_flip(units, seed), len(units))


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction for having asked several questions at once, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    out, running = [0.0] * len(p_values), 0.0
    for place, item in enumerate(order):
        running = max(running, min(1.0, p_values[item] * (len(p_values) - place)))
        out[item] = running
    return out


def _sign_flip(differences: np.ndarray[Any, Any], seed: int) -> float:
    """Units that differ equally are interchangeable: how many of them turn is a binomial draw."""
    differences = differences.round(12)  # equal ones may differ in their last bit
    kinds, counts = np.unique(np.abs(differences), return_counts=True)
    rng = np.random.default_rng(seed)
    totals = sum(
        kind * (2 * rng.binomial(count, 0.5, FLIPS) - count) for kind, count in zip(kinds, counts, strict=True)
    )
    extreme = np.abs(totals) >= abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    return float((1 + np.count_nonzero(extreme)) / (1 + FLIPS))
