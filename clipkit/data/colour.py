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
    value, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    spread = value - low
    safe = torch.where(spread == 0, torch.ones_like(spread), spread)
    sector = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sector = torch.where(value == red, (green - blue) / safe, sector) + turn * 6
    # channel n of HSV back to RGB: value - spread * clip(min(k, 4 - k), 0, 1) with k = (n + sector) mod 6
    channels = []
    for offset in (5, 3, 1):
        k = torch.remainder(sector + offset, 6)
        channels.append(value - spread * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.cat(channels, 1)


_CHANGES = (_brightness, _contrast, _saturation, _hue)


def jitter(pixels: Tensor, factors: NDArray[np.float32], order: NDArray[np.int64]) -> None:
    """Brightness, contrast, saturation and hue, in place.

    Args:
        pixels: float32 (B, 3, H, W) in 0 to 255.
        factors: Per image the three factors (1 changes nothing) and the turn of the hue (0 changes nothing), (B, 4).
        order: Per image the order of the four, (B, 4).
    """
    neutral = np.array([1, 1, 1, 0], np.float32)
    for step in range(4):
        for change in range(4):
            (rows,) = np.nonzero((order[:, step] == change) & (factors[:, change] != neutral[change]))
            if len(rows):
                index = torch.from_numpy(rows)
                factor = torch.from_numpy(factors[rows, change]).view(-1, 1, 1, 1)
                pixels[index] = _CHANGES[change](pixels[index], factor)
