"""Colour changes on a batch, each image by its own factors: torchvision's ``ColorJitter`` and grayscale, vectorised.

Every operation is elementwise, or a sum of integers, so an image's result does not depend on the batch it is in;
multiply and add stay apart, because a fused one rounds differently where vector units end.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision writes it


def grey(pixels: Tensor) -> Tensor:
    """Luma of pixels (B, 3, H, W) in 0 to 255, whole levels, (B, 1, H, W)."""
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]).floor_()


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor + other * (1 - factor)).clamp_(0, 255)


def _brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor).clamp_(0, 255)


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    levels = grey(pixels)
    total = levels.to(torch.int64).sum(dim=(1, 2, 3), keepdim=True)  # integers: exact in whatever order they are added
    mean = (total.double() / (pixels.shape[2] * pixels.shape[3])).float()
    return _blend(pixels, mean, factor)


def _saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, grey(pixels), factor)


def _hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of the circle, through HSV."""
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    safe = spread.clamp(min=1e-6)  # a grey pixel has no hue, and any is right for it
    sector = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sector = torch.where(value == red, (green - blue) / safe, sector) + turn * 6
    sector -= (sector / 6).floor_() * 6
    # HSV back to RGB: how far the hue is from each channel's own sixth
    grown = ((sector - 3).abs_() - 1, 2 - (sector - 2).abs_(), 2 - (sector - 4).abs_())
    return torch.cat([value - spread * (1 - share.clamp_(0, 1)) for share in grown], 1)


def jitter(pixels: Tensor, factors: NDArray[np.float32]) -> None:
    """Brightness, contrast, saturation and hue, in place.

    torchvision draws the order of the four as well; one order for all keeps the batch in one piece.

    Args:
        pixels: float32 (B, 3, H, W) in 0 to 255.
        factors: Per image the three factors (1 changes nothing) and the turn of the hue (0 changes nothing), (B, 4).
    """
    rows = torch.from_numpy(np.flatnonzero((factors != np.array([1, 1, 1, 0], np.float32)).any(1)))
    if len(rows) == 0:
        return
    changed = pixels if len(rows) == len(pixels) else pixels[rows]
    every = torch.from_numpy(factors)[rows, :, None, None, None]
    for column, change in enumerate((_brightness, _contrast, _saturation)):
        changed = change(changed, every[:, column])
    if factors[:, 3].any():
        changed = _hue(changed, every[:, 3])
    pixels[rows] = changed
