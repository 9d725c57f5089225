"""How strongly a linear probe is regularised: CLIP's search over weight decays (section A.3), on held-out rows.

The grid has 97 weight decays from 1e-6 to 1e6, even in the logarithm, CLIP's range at 8 a decade. Every sixteenth is tried;
then the neighbours of the best at distances 8, 4, 2 and 1. Fits run from strong to weak and each begins
between its neighbours' optima. Equal accuracies are decided by the lower cross-entropy, which falls where accuracy is flat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit.evaluation.logistic import Fit, Problem

GRID = tuple(10.0 ** (-6 + step / 8) for step in range(97))
SEEDS, SPANS = range(96, -1, -16), (8, 4, 2, 1)
NO_CHOICE = 1.0  # scikit-learn's default, where there is nothing to choose by
_ROUGH = 2e-4  # gradient at which a fit is near enough to be compared; the chosen one is fitted to the end


@dataclass(frozen=True)
class Tried:
    """One weight decay of the search.

    Args:
        weight_decay: Of the sum over rows, 1 / C of scikit-learn.
        accuracy: Share of held-out rows that are classified rightly, over all folds.
        loss: Their mean cross-entropy, nats.
        steps: Iterations of all folds.
    """

    weight_decay: float
    accuracy: float
    loss: float
    steps: int


Fold = tuple[Tensor, Tensor]
"""Rows to fit on and rows to look at, int64 each."""


def choose(
    features: Tensor, labels: Tensor, classes: int, folds: Sequence[Fold]
) -> tuple[float, list[Tried], Fit | None]:
    """The weight decay that does best on rows that the fit has not seen.

    Args:
        features: (N, D).
        labels: (N,), int64; every class has a row in each fold's first part.
        classes: C.
        folds: Splits of the rows; none where there is nothing to choose by.

    Returns:
        The weight decay (``NO_CHOICE`` without folds), all that were tried from strong to weak, and the first fold's fit
        at the chosen one.
    """
    if not folds:
        return NO_CHOICE, [], None
    quick = features.float()  # the comparison needs no more; the chosen one is fitted in the type of the features
    problems = [Problem(quick[rows], labels[rows], classes) for rows, _ in folds]
    looked_at = [(quick[rows], labels[rows]) for _, rows in folds]
    fits: dict[int, list[Fit]] = {}
    tried: dict[int, Tried] = {}

    def attempt(step: int) -> None:
        if step in tried or not 0 <= step < len(GRID):
            return
        found, right, loss = [], 0, 0.0
        for number, (problem, (rows, target)) in enumerate(zip(problems, looked_at, strict=True)):
            start = _between({at: of_folds[number] for at, of_folds in fits.items()}, step)
            found.append(problem.fit(GRID[step], start=start, tolerance=_ROUGH))
            logits = found[-1].logits(rows)
            right += int((logits.argmax(1) == target).sum())
            loss += float(cross_entropy(logits, target, reduction="sum"))
        fits[step] = found
        count = sum(len(target) for _, target in looked_at)
        tried[step] = Tried(GRID[step], right / count, loss / count, sum(fit.steps for fit in found))

    def best() -> int:
        return max(tried, key=lambda step: (tried[step].accuracy, -tried[step].loss))

    for step in SEEDS:
        attempt(step)
    for span in SPANS:
        middle = best()
        attempt(middle + span)
        attempt(middle - span)
    chosen = best()
    return GRID[chosen], [tried[step] for step in sorted(tried, reverse=True)], fits[chosen][0]


def _between(fits: Mapping[int, Fit], step: int) -> Fit | None:
    """Where to begin: between the two neighbours on the path, which is smooth, or at the only one."""
    below = max((at for at in fits if at < step), default=None)
    above = min((at for at in fits if at > step), default=None)
    if below is None or above is None:
        near = below if above is None else above
        return None if near is None else fits[near]
    low, high, share = fits[below], fits[above], (step - below) / (above - below)
    return replace(low, weight=low.weight.lerp(high.weight, share), bias=low.bias.lerp(high.bias, share))
