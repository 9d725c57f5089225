"""Figures as pure functions: tensors in, plain numbers out, ties always against the model.

A *rank* counts the wrong candidates that score at least as high as the right one, so 0 is best and a tie is a miss: a
collapsed encoder, for which everything is equal, scores 0 and not 1. ``k`` hits when the rank is below ``k``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 1024  # rows and columns of scores held at once: 1024 x 1024 float64 is 8 MiB


class Ranks(NamedTuple):
    """Ranks of the right answer in both directions of retrieval.

    Attributes:
        image: For each caption, the rank of its image among all images (M,), int64.
        text: For each image, the rank of its best caption among the other images' captions (N,), int64.
    """

    image: Tensor
    text: Tensor


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Scores of every row of ``a`` against every row of ``b``, such that equal rows tie exactly.

    A float32 matrix product rounds by its blocking, so two copies of one image could differ in the last bit and a tie
    would be decided by luck. Here sums are float64 and are rounded once, at the end.

    Args:
        a: Unit-norm embeddings (N, D).
        b: Unit-norm embeddings (M, D).

    Returns:
        Cosines (N, M), float32.

    >>> cosines(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    tensor([[0.6000, 0.0000]])
    """
    return (a.double() @ b.double().T).float()


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
    _require_finite(scores, "scores")
    _require_index(labels, scores.shape[1], "labels", "classes")
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
    _require_some(labels)
    total = torch.bincount(labels).double()
    right = torch.bincount(labels, weights=correct.double())
    return float((right / total)[total > 0].mean())


def ranks(image: Tensor, text: Tensor, owner: Tensor, tile: int = TILE) -> Ranks:
    """Exact ranks of retrieval in both directions, with any number of captions an image.

    Caption to image: how many other images score at least as high as the caption's own. Image to caption: how many
    captions of *other* images score at least as high as the best of its own, so an image's captions do not compete with
    each other. Two equal images, or one caption shared by two images, are a tie, which counts against the model.
    Memory is O(tile^2) above the inputs, never O(N x M).

    Args:
        image: Unit-norm image embeddings (N, D).
        text: Unit-norm caption embeddings (M, D).
        owner: For each caption, the row of its image (M,), int64.
        tile: Rows and columns of the scores computed at once.

    Returns:
        The ranks of both directions.

    Raises:
        ValueError: If an embedding is not finite, an owner is no image, or an image has no caption.

    >>> image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> text = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> ranks(image, text, owner=torch.tensor([0, 0, 1]))  # the second caption is nearer to the other image
    Ranks(image=tensor([0, 1, 0]), text=tensor([0, 0]))
    """
    _require_finite(image, "image embeddings")
    _require_finite(text, "caption embeddings")
    _require_index(owner, len(image), "owner", "images")
    without = torch.bincount(owner, minlength=len(image)).eq(0).nonzero()
    if len(without):
        raise ValueError(f"image {int(without[0])} has no caption; every image needs at least one")

    # Score of each caption with its own image, and of each image with its best caption.
    own = torch.cat([_paired(image[owner[t]], text[t]) for t in _tiles(len(text), tile)])  # (M,)
    best = own.new_full((len(image),), -torch.inf).scatter_reduce(0, owner, own, "amax")  # (N,)
    of_captions = torch.zeros(len(text), dtype=torch.int64, device=text.device)
    of_images = torch.zeros(len(image), dtype=torch.int64, device=text.device)
    for i in _tiles(len(image), tile):
        for t in _tiles(len(text), tile):
            scores = cosines(image[i], text[t])
            mine = ((owner[t] >= i.start) & (owner[t] < i.stop)).nonzero().squeeze(1)
            scores[owner[t][mine] - i.start, mine] = -torch.inf  # the right pairs do not count against themselves
            of_captions[t] += (scores >= own[t]).sum(0)
            of_images[i] += (scores >= best[i, None]).sum(1)
    return Ranks(image=of_captions, text=of_images)


def recall_at(ranks: Tensor, k: int) -> float:
    """Share of ranks below ``k``: the hit rate that CLIP papers call recall@k.

    Args:
        ranks: Ranks from 0, the best (N,), int64.
        k: How many answers are looked at.

    Returns:
        A fraction.

    Raises:
        ValueError: If there are no ranks.

    >>> recall_at(torch.tensor([0, 4, 5, 9]), k=5)
    0.5
    """
    _require_some(ranks)
    return int((ranks < k).sum()) / len(ranks)


def _tiles(length: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, length)) for start in range(0, length, tile)]


def _paired(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of matching rows, (N, D) with (N, D) to (N,), rounded as in ``cosines``."""
    return (a.double() * b.double()).sum(1).float()


def _require_finite(values: Tensor, name: str) -> None:
    # NaN compares as false with everything, which would make every rank 0: a perfect score for a broken model.
    bad = (~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero()
    if len(bad):
        raise ValueError(f"{name} must be finite: row {int(bad[0])} and {len(bad) - 1} others hold NaN or infinity")


def _require_index(index: Tensor, size: int, name: str, of: str) -> None:
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
        wrong = int(index.min()) if int(index.min()) < 0 else int(index.max())
        raise ValueError(f"{name} holds {wrong}, but there are {size} {of} (0 to {size - 1})")


def _require_some(values: Tensor) -> None:
    if not len(values):
        raise ValueError("no samples: a figure over nothing is not a number")
