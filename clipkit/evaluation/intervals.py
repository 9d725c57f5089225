"""Intervals by the bootstrap: how far a figure would move with another draw of the same kind of samples.

Percentile bootstrap (Efron 1979). Units that share a cluster (captions of one image) are drawn together: a caption more of an image that was
seen already is not a new observation.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 2**22  # numbers drawn at once


def bootstrap_interval(
    values: Tensor,
    *,
    seed: int,
    clusters: Tensor | None = None,
    strata: Tensor | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> list[float] | None:
    """The interval of a mean.

    Args:
        values: What each unit contributes (N,): hits, or any number.
        seed: Decides the draws.
        clusters: Which cluster each unit belongs to (N,), int64; whole clusters are drawn. None: each unit is one.
        strata: Which stratum each unit belongs to (N,), int64; the figure is the mean over strata of the mean within
            (mean per-class recall), of those strata that a draw holds. None: one.
        resamples: How many draws.
        level: Share of the draws that lie inside.

    Returns:
        ``[low, high]``, or None with fewer than two units.

    Raises:
        ValueError: If both clusters and strata are given.

    >>> import torch
    >>> bootstrap_interval(torch.tensor([1.0, 1.0, 1.0]), seed=0)
    [1.0, 1.0]
    """
    if clusters is not None and strata is not None:
        raise ValueError("clusters and strata together are not supported: give one of them")
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    x = values.double().cpu().numpy()
    if strata is not None:
        drawn = _means_within(x, strata.cpu().numpy(), rng, resamples)
    else:
        sums, sizes = (x, np.ones_like(x)) if clusters is None else _by_cluster(x, clusters.cpu().numpy())
        drawn = _means(sums, sizes, rng, resamples)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def _by_cluster(x: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, place = np.unique(clusters, return_inverse=True)
    return np.bincount(place, weights=x), np.bincount(place).astype(float)


def _means(sums: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Means of draws with replacement. Equal units are drawn by how often they come: a multinomial over distinct ones."""
    distinct, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    at_once, parts = max(1, _CELLS // len(distinct)), []
    for start in range(0, resamples, at_once):
        often = rng.multinomial(len(sums), counts / len(sums), size=min(at_once, resamples - start))
        total = often @ distinct
        parts.append(total[:, 0] / total[:, 1])
    return np.concatenate(parts)


def _means_within(x: np.ndarray, strata: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Means over strata of the mean within, of draws from all units: drawn by itself, a stratum of one unit would never vary."""
    cells, counts = np.unique(np.stack([strata.astype(float), x], axis=1), axis=0, return_counts=True)
    first = np.flatnonzero(np.diff(cells[:, 0], prepend=-1.0))  # where each stratum's cells begin
    at_once, parts = max(1, _CELLS // len(cells)), []
    for start in range(0, resamples, at_once):
        often = rng.multinomial(len(x), counts / len(x), size=min(at_once, resamples - start))
        sizes = np.add.reduceat(often, first, axis=1)
        sums = np.add.reduceat(often * cells[:, 1], first, axis=1)
        parts.append(np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0).sum(1) / (sizes > 0).sum(1))
    return np.concatenate(parts)
