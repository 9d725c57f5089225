"""Multinomial logistic regression to its optimum, as a pure function: scikit-learn's problem on any device.

Minimised over W (D, C) and b (C,), with N rows x_i of labels y_i::

    sum_i cross_entropy(x_i W + b, y_i) + weight_decay / 2 * |W|^2

which is ``LogisticRegression(C=1 / weight_decay)``: the bias is not decayed. The linear probe of CLIP (section A.3) is this
problem with L-BFGS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

MOST_STEPS = 1000  # iterations of L-BFGS, CLIP's number
_HISTORY = 20


@dataclass(frozen=True)
class Fit:
    """A linear classifier.

    Args:
        weight: (D, C).
        bias: (C,).
        weight_decay: What it was fitted with.
        steps: Iterations that it took.
        converged: Whether the gradient fell below the tolerance.
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    steps: int
    converged: bool

    def logits(self, features: Tensor) -> Tensor:
        """Score of each class (N, C) for features (N, D), in the type of the weights."""
        return features.to(self.weight) @ self.weight + self.bias


class Problem:
    """One training set, prepared once for fits at many weight decays.

    L-BFGS runs in other coordinates: along the principal axes of the centred features, each scaled by the root of its
    curvature. That moves no optimum, and takes tens of steps where features as they come take hundreds.

    Args:
        features: (N, D), on the device and in the type to compute in.
        labels: Class of each row (N,), int64, every class of ``range(C)`` at least once.
        classes: C.

    Raises:
        ValueError: If a feature is not finite, or a class has no row.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        bad = (~features.isfinite()).any(1).nonzero()
        if len(bad):
            raise ValueError(
                f"features must be finite: row {int(bad[0])} and {len(bad) - 1} others hold NaN or infinity"
            )
        absent = (torch.bincount(labels, minlength=classes) == 0).nonzero()
        if len(absent):
            raise ValueError(f"class {int(absent[0])} has no training row; leave it out of the classes")
        self.features, self.labels, self.classes = features, labels, classes
        self.mean = features.mean(0)
        self.axes, self.lengths = _principal_axes(features - self.mean)
        self.target = one_hot(labels, classes).to(features.dtype).T.contiguous()  # (C, N)

    def fit(self, weight_decay: float, *, start: Fit | None = None, tolerance: float = 1e-5) -> Fit:
        """The optimum at one weight decay.

        Args:
            weight_decay: Above 0; as in the sum above, not the mean.
            start: Where to begin: the fit at a neighbouring weight decay, else zero.
            tolerance: Largest entry of the gradient of the mean loss, in scaled coordinates, that counts as the optimum.

        Returns:
            The classifier for features as they were given.
        """
        x, classes = self.features, self.classes
        count, decay = len(x), weight_decay / len(x)
        curvature = (self.lengths**2 * (classes - 1) / classes**2 + weight_decay) / count
        basis = (self.axes / curvature.sqrt()).T.contiguous()  # (R, D): weights are point @ basis
        weight, bias = x.new_zeros(classes, len(basis)), self.target.mean(1).log()
        if start is not None:
            weight = start.weight.to(x).T @ self.axes * curvature.sqrt()
            bias = start.bias.to(x) + self.mean @ start.weight.to(x)

        def loss_and_gradient(point: Tensor) -> tuple[Tensor, Tensor]:
            w = point[:, :-1] @ basis  # (C, D)
            logs = log_softmax(
                w @ x.T + (point[:, -1] - w @ self.mean)[:, None], 0
            )  # (C, N): several times faster than (N, C)
            loss = 0.5 * decay * (w * w).sum() - logs.gather(0, self.labels[None]).mean()
            error = logs.exp_().sub_(self.target).div_(count)
            total = error.sum(1, keepdim=True)
            gradient = error @ x - total * self.mean + decay * w
            return loss, torch.cat([gradient @ basis.T, total], 1)

        point, steps, converged = _lbfgs(loss_and_gradient, torch.cat([weight, bias[:, None]], 1), tolerance)
        weight = (point[:, :-1] @ basis).T
        return Fit(weight, point[:, -1] - self.mean @ weight, weight_decay, steps, converged)


def _principal_axes(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (D, R) that span the rows (N, D) of which the optimum is made, and the rows' length along each (R,).

    With at least as many rows as columns these are all D, and single precision is enough: they only steer the descent.
    """
    count, width = centred.shape
    if width <= count:
        narrow = centred.float()
        values, vectors = torch.linalg.eigh(narrow.T @ narrow)
        return vectors.to(centred), values.clamp_min(0).sqrt().to(centred)
    values, vectors = torch.linalg.eigh((centred @ centred.T).double())
    real = values > values[-1].clamp_min(0) * count * torch.finfo(centred.dtype).eps
    lengths, vectors = values[real].sqrt().to(centred), vectors[:, real].to(centred)
    return centred.T @ vectors / lengths, lengths


def _lbfgs(
    loss_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, tolerance: float
) -> tuple[Tensor, int, bool]:
    """Minimise with torch's L-BFGS and strong Wolfe line search: the point, iterations, and whether it arrived."""
    point = start.clone()
    optimiser = torch.optim.LBFGS(
        [point],
        max_iter=MOST_STEPS,
        max_eval=4 * MOST_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=torch.finfo(start.dtype).eps,  # below it a loss of about 1 cannot fall further
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss, point.grad = loss_and_gradient(point)
        return loss

    with torch.no_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
        gradient = loss_and_gradient(point)[1]
    steps = int(optimiser.state[point].get("n_iter", 0))
    return point, steps, float(gradient.abs().max()) <= max(tolerance, 10 * torch.finfo(start.dtype).eps)
