"""Tables of a classification: precision, recall and F1 by class and over all, and what is taken for what."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from clipkit.metrics.checks import require_index, require_same_length, require_some

Average = Literal["macro", "micro", "weighted", "none"]
AVERAGES: tuple[Average, ...] = ("macro", "micro", "weighted")


class ClassTable(NamedTuple):
    """Figures of each class.

    Attributes:
        precision: Share of the images called so that are so (C,), float64, 0 where none is called so.
        recall: Share of the images that are so that are called so (C,), float64, 0 where there are none.
        f1: Harmonic mean of both (C,), float64, 0 where both are 0.
        support: Images of the class (C,), int64.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor


def predictions(scores: Tensor, labels: Tensor) -> Tensor:
    """The class that each row is taken for; where the right class ties for the best, one of the wrong ones.

    Args:
        scores: Score of each class (N, C).
        labels: The right class (N,), int64.

    Returns:
        Classes (N,), int64, right exactly where ``label_ranks`` is 0.

    >>> predictions(torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]]), torch.tensor([0, 2]))
    tensor([1, 2])
    """
    right = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], -torch.inf)
    best, wrong = others.max(1)
    return torch.where(best >= right.squeeze(1), wrong, labels)


def class_table(predicted: Tensor, labels: Tensor, classes: int) -> ClassTable:
    """Precision, recall and F1 of each class, by torchmetrics.

    Args:
        predicted: The class that each sample is taken for (N,), int64.
        labels: The right class (N,), int64.
        classes: How many classes there are.

    Raises:
        ValueError: If there are no samples, or a class is out of range.

    >>> table = class_table(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), classes=3)
    >>> table.precision.tolist(), table.recall.tolist(), table.support.tolist()
    ([0.5, 1.0, 0.0], [1.0, 0.5, 0.0], [1, 2, 0])
    """
    precision, recall, f1 = _scores(predicted, labels, classes, "none")
    return ClassTable(precision, recall, f1, torch.bincount(labels, minlength=classes))


def averages(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """``macro_precision`` to ``weighted_f1``, by torchmetrics.

    Macro is the mean over classes that occur as label or prediction; micro counts all samples alike, so that its
    three are the accuracy; weighted is the mean over classes by their number of samples.

    Args:
        predicted: The class that each sample is taken for (N,), int64.
        labels: The right class (N,), int64.
        classes: How many classes there are.

    Raises:
        ValueError: If there are no samples, or a class is out of range.

    >>> averages(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), classes=2)["macro_precision"]
    0.75
    """
    names = ("precision", "recall", "f1")
    found: dict[str, float] = {}
    for average in AVERAGES:
        values = _scores(predicted, labels, classes, average)
        found |= {f"{average}_{name}": float(value) for name, value in zip(names, values, strict=True)}
    return found


def _scores(predicted: Tensor, labels: Tensor, classes: int, average: Average) -> tuple[Tensor, Tensor, Tensor]:
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

    require_some(labels)
    require_same_length(predicted=predicted, labels=labels)
    require_index(predicted, classes, "predicted", "classes")
    require_index(labels, classes, "labels", "classes")
    if classes == 1:  # torchmetrics takes two or more; with one, all is right
        one = torch.ones((1,) if average == "none" else (), dtype=torch.float64)
        return one, one, one
    made = [
        function(predicted, labels, classes, average=average, validate_args=False).double()
        for function in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    return made[0], made[1], made[2]


def confusions(predicted: Tensor, labels: Tensor, most: int | None = None) -> list[tuple[int, int, int]]:
    """The cells of the confusion matrix that are not empty, off its diagonal, the fullest first.

    Args:
        predicted: The class that each sample is taken for (N,), int64.
        labels: The right class (N,), int64.
        most: How many cells to return; None returns all.

    Returns:
        ``(label, predicted, count)``; equal counts by label, then by prediction.

    >>> confusions(torch.tensor([1, 1, 0, 2]), torch.tensor([0, 0, 0, 1]))
    [(0, 1, 2), (1, 2, 1)]
    """
    wrong = predicted != labels
    pairs, counts = torch.unique(torch.stack([labels[wrong], predicted[wrong]], 1), dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:most]
    return [(int(a), int(b), int(count)) for (a, b), count in zip(pairs[order], counts[order], strict=True)]
