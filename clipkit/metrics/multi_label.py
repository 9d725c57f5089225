"""Average precision with several labels an image, area and 11-point, each by its name. Ties always against the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipkit.metrics.checks import require_finite, require_same_length


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Area under the precision-recall curve of each class: mean precision at each right image.

    CLIP_benchmark's, torchnet's and, where scores do not tie, scikit-learn's definition. Among equal scores the wrong
    images come first.

    Args:
        scores: Score of each class (N, C).
        targets: Whether the image has the label (N, C), bool.

    Returns:
        A fraction for each class (C,), float64, NaN for a class that no image has.

    Raises:
        ValueError: If the shapes differ or a score is not finite.

    >>> average_precision(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[True], [False], [True]]))
    tensor([0.8333], dtype=torch.float64)
    """
    return _by_class(scores, targets, lambda precision, recall: precision.mean())


def eleven_point_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """PASCAL VOC's average precision until 2009: mean over recalls 0, 0.1 ... 1 of the best precision at that recall or more.

    The one that CLIP's figure for VOC2007 is made with (Everingham et al., 2010, equation 1).

    Args:
        scores: Score of each class (N, C).
        targets: Whether the image has the label (N, C), bool.

    Returns:
        A fraction for each class (C,), float64, NaN for a class that no image has.

    Raises:
        ValueError: If the shapes differ or a score is not finite.

    >>> eleven_point_precision(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[True], [False], [True]]))
    tensor([0.8485], dtype=torch.float64)
    """

    def at_eleven(precision: Tensor, recall: Tensor) -> Tensor:
        # Precision is highest at a right image, so those are all that matter; recall there is (1 ... P) / P.
        best = precision.flip(0).cummax(0).values.flip(0)
        first = [
            -(-len(recall) * tenth // 10) for tenth in range(11)
        ]  # right images needed: whole numbers, no rounding
        return torch.stack([best[max(needed - 1, 0)] for needed in first]).mean()

    return _by_class(scores, targets, at_eleven)


def _by_class(scores: Tensor, targets: Tensor, figure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A figure of precision and recall at each right image, for every class."""
    require_same_length(scores=scores, targets=targets)
    if scores.shape != targets.shape:
        raise ValueError(
            f"one score and one target an image and class: got {list(scores.shape)}, {list(targets.shape)}"
        )
    require_finite(scores, "scores")
    found = torch.full((scores.shape[1],), torch.nan, dtype=torch.float64)
    for label in range(scores.shape[1]):
        score, right = scores[:, label], targets[:, label].bool()
        if not right.any():
            continue
        # Wrong ones first, then a stable sort: equal scores keep that order.
        order = right.to(torch.uint8).argsort(stable=True)
        order = order[score[order].argsort(descending=True, stable=True)]
        places = right[order].nonzero().squeeze(1) + 1  # from 1
        nth = torch.arange(1, len(places) + 1, dtype=torch.float64)
        found[label] = figure(nth / places, nth / len(places))
    return found
