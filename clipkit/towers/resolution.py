"""open_clip's vision transformers at another resolution than they were built for: interpolated position embeddings.

The embeddings are resized on the way (bicubic, antialiased, as open_clip's ``resize_pos_embed`` does once at loading), so
the weights keep their shape, training at a low resolution trains them through the interpolation, and back at their own
resolution nothing is interpolated. timm's towers and ConvNets see to it by themselves, or cannot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

_EMBEDDING = "positional_embedding"


def at_resolution(model: nn.Module, x: Tensor) -> Any:
    """``model(x)`` for images (B, 3, H, W) of any size that its patches divide.

    Raises:
        ValueError: If the patches of a vision transformer do not divide the size.
    """
    grid: tuple[int, int] | None = getattr(model, "grid_size", None)
    own: Tensor | None = getattr(model, _EMBEDDING, None)
    height, width = x.shape[2:]
    if grid is None or own is None or (height, width) == model.image_size:
        return model(x)
    patch: tuple[int, int] = model.patch_size  # type: ignore[assignment]
    goal = height // patch[0], width // patch[1]
    if height % patch[0] or width % patch[1]:
        raise ValueError(f"images of {height} x {width} do not divide into patches of {patch[0]} x {patch[1]}")
    return functional_call(model, {_EMBEDDING: resized(own, grid, goal)}, (x,))


def resized(embedding: Tensor, grid: tuple[int, int], goal: tuple[int, int]) -> Tensor:
    """Position embeddings (1 + h * w, D), the class token's first, for another grid of patches."""
    head, body = embedding[:1], embedding[1:].float()
    square = body.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, goal, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([head, square.permute(0, 2, 3, 1).reshape(goal[0] * goal[1], -1).to(head.dtype)])
