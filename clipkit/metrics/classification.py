"""Classification by scores: ranks of the right class, accuracy, recall per class. Ties always against the model."""

import torch
from torch import Tensor

from clipkit.metrics.checks import require_finite, require_index, require_some
from clipkit.metrics.retrieval import recall_at


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Ranks of the right class: how many other classes score at least as high.

    Args:
        scores: Score of each class (N, C).
        labels: The right class (N,), int64.

    Returns:
        Ranks from 0, the best (N,), int64.

    Raises:
        ValueError: If a score is not a finite number, or a label is no column of ``scores``.

    >>> label_ranks(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]]), torch.tensor([1, 0]))
    tensor([0, 1])
    """
    require_finite(scores, "scores")
    require_index(labels, scores.shape[1], "labels", "classes")
    right = scores.gather(1, labels[:, None])
    return (scores >= right).sum(1) - 1


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float | None:
    """Share of rows whose right class is among the ``k`` best, ties counting against it.

    Args:
        scores: Score of each class (N, C).
        labels: The right class (N,), int64.
        k: How many guesses are allowed.

    Returns:
        A fraction, or None with fewer than ``k`` classes, where it would say nothing.

    >>> scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]])
    >>> topk_accuracy(scores, torch.tensor([1, 0]), k=1), topk_accuracy(scores, torch.tensor([1, 0]), k=2)
    (0.5, 1.0)
    >>> topk_accuracy(scores, torch.tensor([1, 0]), k=5) is None
    True
    """
    if scores.shape[1] < k:
        return None
    return recall_at(label_ranks(scores, labels), k)


def mean_per_class_recall(correct: Tensor, labels: Tensor) -> float:
    """Accuracy within each class, averaged over the classes that occur (balanced accuracy).

    Args:
        correct: Whether each sample was classified rightly (N,), bool.
        labels: The right class (N,), int64.

    Returns:
        A fraction.

    Raises:
        ValueError: If there are no samples.

    >>> mean_per_class_recall(torch.tensor([True, True, False, True]), torch.tensor([0, 0, 0, 7]))
    0.8333333333333333
    """
    require_some(labels)
    total = torch.bincount(labels).double()
    right = torch.bincount(labels, weights=correct.double())
    return float((right / total)[total > 0].mean())
