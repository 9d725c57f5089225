"""Where image and text embeddings lie on the sphere: modality gap, alignment, uniformity. Tiled, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipkit.metrics.checks import require_finite, require_index, require_some
from clipkit.metrics.scores import TILE, tiles


def modality_gap(image: Tensor, text: Tensor) -> float:
    """Distance between the mean image embedding and the mean caption embedding (Liang et al., 2022, section 4.2).

    Args:
        image: Unit-norm image embeddings (N, D).
        text: Unit-norm caption embeddings (M, D).

    Returns:
        From 0, the same centre, to 2.

    >>> modality_gap(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])) == 2**0.5
    True
    """
    for values, name in ((image, "image embeddings"), (text, "caption embeddings")):
        require_some(values)
        require_finite(values, name)
    return float((_mean(image) - _mean(text)).norm())


def alignment(image: Tensor, text: Tensor, owner: Tensor, tile: int = TILE) -> float:
    """Mean squared distance of the pairs (Wang and Isola, 2020, with alpha = 2), over captions.

    Args:
        image: Unit-norm image embeddings (N, D).
        text: Unit-norm caption embeddings (M, D).
        owner: For each caption, the row of its image (M,), int64.
        tile: Pairs at once.

    Returns:
        From 0, every pair in one point, to 4.

    >>> alignment(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))
    1.0
    """
    require_some(text)
    require_index(owner, len(image), "owner", "images")
    total = sum(float((image[owner[t]].double() - text[t].double()).square().sum()) for t in tiles(len(text), tile))
    return total / len(text)


def uniformity(rows: Tensor, tile: int = TILE) -> float | None:
    """Logarithm of the mean of exp(-2 squared distance) over all pairs of different rows (Wang and Isola, 2020, t = 2).

    Args:
        rows: Unit-norm embeddings of one modality (N, D).
        tile: Rows and columns of distances at once.

    Returns:
        From 0, all in one point, down to about -4, spread evenly; None with fewer than two rows.

    >>> uniformity(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    0.0
    """
    require_finite(rows, "embeddings")
    if len(rows) < 2:
        return None
    total = 0.0
    for i in tiles(len(rows), tile):
        a = rows[i].double()
        for j in tiles(len(rows), tile):
            if j.start < i.start:
                continue
            b = rows[j].double()
            squared = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min_(0)
            near = squared.mul_(-2).exp_()
            # The tile on the diagonal holds each pair twice, and each row with itself.
            total += float(near.sum() - near.diagonal().sum()) / 2 if i == j else float(near.sum())
    return math.log(total / (len(rows) * (len(rows) - 1) / 2))


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(0, dtype=torch.float64)
