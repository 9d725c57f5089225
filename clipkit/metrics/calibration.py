"""Calibration: whether a classifier that says 80 % is right four times in five (Guo et al., 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit.metrics.checks import require_finite, require_index, require_same_length, require_some

BINS = 15  # Guo et al., section 2


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS, binning: str = "width") -> float:
    """How far confidence and accuracy lie apart, averaged over bins by their number of samples (equation 3).

    Args:
        confidence: Probability given to the guess (N,), within 0 and 1.
        correct: Whether the guess was right (N,), bool.
        bins: How many bins.
        binning: ``width``: bins of equal width over 0 to 1, each with its upper edge; ``mass``: bins of equally many
            samples in the order of confidence, equal ones as they stand.

    Returns:
        A fraction.

    Raises:
        ValueError: If there are no samples or no such binning.

    >>> expected_calibration_error(torch.tensor([0.75, 0.75, 0.5, 0.5]), torch.tensor([True, True, True, False]))
    0.125
    """
    require_some(confidence)
    require_same_length(confidence=confidence, correct=correct)
    sure = confidence.double()
    if binning == "width":
        place = (sure * bins).ceil().long().clamp(1, bins) - 1
    elif binning == "mass":
        rank = torch.empty(len(sure), dtype=torch.int64).scatter_(0, sure.argsort(stable=True), torch.arange(len(sure)))
        place = rank * bins // len(sure)
    else:
        raise ValueError(f"binning {binning!r} is not known; take width or mass")
    gap = torch.bincount(place, weights=correct.double(), minlength=bins)
    gap = gap - torch.bincount(place, weights=sure, minlength=bins)
    return float(gap.abs().sum()) / len(sure)


def negative_log_likelihood(scores: Tensor, labels: Tensor, scale: float) -> float:
    """Mean of -log p(label) in nats, of a softmax over ``scale * scores``.

    Args:
        scores: Score of each class (N, C).
        labels: The right class (N,), int64.
        scale: Inverse temperature.
    """
    return float(cross_entropy(scale * scores.double(), labels))


def fit_scale(scores: Tensor, labels: Tensor) -> float:
    """The inverse temperature at which the likelihood is highest (Guo et al., section 4.2).

    The loss is convex in the scale, so bisection on the sign of its derivative finds the minimum.

    Args:
        scores: Score of each class (N, C), such as cosines.
        labels: The right class (N,), int64.

    Returns:
        A positive number, within 1e-4 and 1e6: the edge where all or none are right.

    Raises:
        ValueError: If there are no samples, a score is not finite or a label is no class.
    """
    require_some(labels)
    require_finite(scores, "scores")
    require_index(labels, scores.shape[1], "labels", "classes")
    x = scores.double()
    right = x.gather(1, labels[:, None]).squeeze(1).mean()
    low, high = math.log(1e-4), math.log(1e6)
    for _ in range(60):
        middle = (low + high) / 2
        expected = (x * (math.exp(middle) * x).softmax(1)).sum(1).mean()
        low, high = (low, middle) if float(expected - right) > 0 else (middle, high)
    return math.exp((low + high) / 2)
