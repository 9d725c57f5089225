"""Embeddings in the plane: t-SNE where scikit-learn is installed (the ``report`` extra), else the two first principal components."""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 30  # below it neighbourhoods mean little: principal components


def to_plane(embeddings: Tensor) -> tuple[Tensor, str]:
    """Two coordinates for each embedding.

    Args:
        embeddings: Unit-norm embeddings (N, D).

    Returns:
        (N, 2) in [0, 1], and what was done, in words.
    """
    if len(embeddings) < FEWEST:
        return _components(embeddings)
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return _components(embeddings)
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    method = TSNE(2, perplexity=perplexity, init="pca", metric="cosine", random_state=0)
    xy = torch.from_numpy(method.fit_transform(embeddings.double().numpy())).float()
    words = f"t-SNE (cosine distance, perplexity {perplexity:.0f}, seed 0): near points are alike; distances between clusters mean nothing"
    return _fitted(xy), words


def _components(embeddings: Tensor) -> tuple[Tensor, str]:
    centred = embeddings.double() - embeddings.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    two = torch.zeros(len(embeddings), 2, dtype=torch.float64)
    two[:, : min(2, len(s))] = (u * s)[:, :2]
    total = float(s.square().sum()) or 1.0
    share = float(s[:2].square().sum()) / total
    return _fitted(two.float()), f"the first two principal components, which hold {100 * share:.0f} % of the variance"


def _fitted(xy: Tensor) -> Tensor:
    low, high = xy.amin(0), xy.amax(0)
    return (xy - low) / (high - low).clamp_min(1e-9)
