"""Calibration of a zero-shot classifier at its own scale, and at one fitted to half of the samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit import metrics

FITTED_ON = 4096  # samples at most: the scale is one number


def calibrated(image: Tensor, classes: Tensor, labels: Tensor, correct: Tensor, scale: float | None) -> dict[str, Any]:
    """Calibration at the model's scale and at one fitted to the even samples, both measured on the odd ones.

    Args:
        image: Unit-norm image embeddings (N, D).
        classes: Unit-norm class embeddings (C, D).
        labels: The right class (N,), int64.
        correct: Whether each image was classified rightly (N,), bool.
        scale: The model's inverse temperature, or None where it has none.

    Returns:
        ``ece_width`` and ``ece_mass`` (bins of equal width, of equally many samples) of all samples; ``scale``,
        ``fitted_scale``, ``fitted_on`` (how many samples); ``before`` and ``after`` with ``nll`` in nats and both errors
        of the odd samples. None where a figure means nothing.
    """
    found: dict[str, Any] = dict.fromkeys(("ece_width", "ece_mass", "fitted_scale", "fitted_on", "before", "after"))
    found |= {"scale": scale, "bins": metrics.BINS}
    if scale is None:
        return found
    sure, nll = _read(image, classes, labels, scale)
    found |= _errors(sure, correct)
    fit, held = torch.arange(0, len(labels), 2), slice(1, None, 2)
    if len(labels) < 2 or len(classes) < 2:
        return found
    fit = fit[:: -(-len(fit) // FITTED_ON)]  # evenly over the set, which may be sorted by class
    fitted = metrics.fit_scale(metrics.cosines(image[fit], classes), labels[fit])
    sure_after, nll_after = _read(image[held], classes, labels[held], fitted)
    before = {"nll": float(nll[held].mean()), **_errors(sure[held], correct[held])}
    after = {"nll": float(nll_after.mean()), **_errors(sure_after, correct[held])}
    return found | {"fitted_scale": fitted, "fitted_on": len(fit), "before": before, "after": after}


def _read(image: Tensor, classes: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The highest probability of each image, and -log of the right class's (N,), tile by tile."""
    sure, nll = torch.empty(len(image), dtype=torch.float64), torch.empty(len(image), dtype=torch.float64)
    for rows in metrics.tiles(len(image), metrics.TILE):
        logs = (scale * metrics.cosines(image[rows], classes).double()).log_softmax(1)
        sure[rows] = logs.amax(1).exp()
        nll[rows] = -logs.gather(1, labels[rows, None]).squeeze(1)
    return sure, nll


def _errors(sure: Tensor, correct: Tensor) -> dict[str, float]:
    return {
        f"ece_{binning}": metrics.expected_calibration_error(sure, correct, binning=binning)
        for binning in ("width", "mass")
    }
