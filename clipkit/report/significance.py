"""Intervals of one run's figures and paired tests of two runs', by resampling independent units.

A unit is an image. The captions of one image are not independent of each other, so they are drawn and flipped together.
Units with equal values are interchangeable: draws count values instead of units, which makes 50,000 units as cheap as 50.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

DRAWS, FLIPS = 2_000, 10_000
_LEVEL = (2.5, 97.5)  # percentiles


class Paired(NamedTuple):
    """Two encoders on the same units."""

    difference: float
    """Mean of the second minus mean of the first."""
    low: float
    """Lower end of the 95 % interval (percentile bootstrap over units)."""
    high: float
    """Upper end."""
    p: float
    """Two-sided p of the sign-flip permutation test over units."""
    units: int
    """How many units there are."""


def interval(outcomes: Tensor, owner: Tensor | None = None, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of a mean.

    Args:
        outcomes: One value each (N,).
        owner: The unit that each value belongs to (N,), int64; unset: each is its own.
        seed: Of the draws.
    """
    sums, sizes = _per_unit(outcomes.double().numpy(), owner)
    low, high = np.percentile(_resampled(sums, sizes, seed), _LEVEL)
    return float(low), float(high)


def paired(first: Tensor, second: Tensor, owner: Tensor | None = None, *, seed: int = 0) -> Paired:
    """The difference of two means over the same units, its interval, and how easily chance alone gives as much.

    Under the null hypothesis the two encoders are alike, so each unit's difference might as well have the other sign;
    p is the share of 10,000 random choices of signs whose total is at least as far from 0, the observed one counted in.

    Args:
        first: Values of the first encoder (N,).
        second: Values of the second (N,), in the same order.
        owner: The unit of each value (N,), int64; unset: each is its own.
        seed: Of the draws.

    Raises:
        ValueError: If the two differ in length.

    >>> import torch
    >>> paired(torch.zeros(10), torch.ones(10)).difference
    1.0
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} outcomes are not paired; evaluate both runs on one set")
    differences, sizes = _per_unit((second.double() - first.double()).numpy(), owner)
    low, high = np.percentile(_resampled(differences, sizes, seed), _LEVEL)
    mean = float(differences.sum() / sizes.sum())
    return Paired(mean, float(low), float(high), _sign_flip(differences, seed), len(sizes))


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


def _per_unit(values: np.ndarray[Any, Any], owner: Tensor | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sum and number of the values of each unit that has any."""
    if owner is None:
        return values, np.ones(len(values))
    sums, sizes = np.bincount(owner.numpy(), weights=values), np.bincount(owner.numpy())
    return sums[sizes > 0], sizes[sizes > 0].astype(float)


def _resampled(sums: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Means of ``DRAWS`` resamples of the units."""
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(sums), counts / len(sums), size=DRAWS)
    total: np.ndarray[Any, Any] = drawn @ kinds
    means: np.ndarray[Any, Any] = total[:, 0] / total[:, 1]
    return means


def _sign_flip(differences: np.ndarray[Any, Any], seed: int) -> float:
    kinds, counts = np.unique(np.abs(differences), return_counts=True)
    rng = np.random.default_rng(seed)
    totals = sum(
        kind * (2 * rng.binomial(count, 0.5, FLIPS) - count) for kind, count in zip(kinds, counts, strict=True)
    )
    extreme = np.abs(totals) >= abs(differences.sum()) - 1e-9
    return float((1 + np.count_nonzero(extreme)) / (1 + FLIPS))
