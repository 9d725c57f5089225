"""Decoded pixels, and their crop and resize as Pillow would do them.

Nearly every image is a uint8 tensor. A few stay with Pillow until they have been resized: those whose mode has to be
resized before it becomes RGB (open_clip's order), and those decoded at a fraction of their size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

INTERPOLATIONS = ("bicubic", "bilinear")
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class PillowImage(NamedTuple):
    """An image that Pillow resizes.

    Args:
        image: Its pixels in any mode, perhaps at a half, a quarter or an eighth of the size.
        height: Of the whole image, in which crops are given.
        width: Of the whole image.
        step: Pixels of the whole image that one of these stands for, both ways.
        before: How many pixels above and left of the whole image these begin: its size need not divide by ``step``.
    """

    image: Image.Image
    height: int
    width: int
    step: int = 1
    before: tuple[int, int] = (0, 0)


Pixels = Tensor | PillowImage
"""An image: RGB, uint8 (3, H, W), or one that is still Pillow's."""


def size_of(pixels: Pixels) -> tuple[int, int]:
    """Height and width of the whole image."""
    if isinstance(pixels, PillowImage):
        return pixels.height, pixels.width
    return int(pixels.shape[1]), int(pixels.shape[2])


def crop_resized(pixels: Pixels, box: tuple[int, int, int, int], size: tuple[int, int], interpolation: str) -> Tensor:
    """Cut a box out and resize it.

    Args:
        pixels: The image.
        box: top, left, height, width, in pixels of the whole image.
        size: Height and width to give.
        interpolation: ``bicubic`` or ``bilinear``.

    Returns:
        RGB, uint8 (3, *size).
    """
    top, left, height, width = box
    if isinstance(pixels, Tensor):
        return resize_as_pillow(pixels[:, top : top + height, left : left + width], *size, interpolation)
    image, resampling = pixels.image, _RESAMPLING[interpolation]
    if pixels.step == 1:
        part = image.crop((left, top, left + width, top + height)).resize((size[1], size[0]), resampling)
    else:  # the box's edges lie between pixels
        top, left = top + pixels.before[0], left + pixels.before[1]
        step = pixels.step
        edges = left / step, top / step, (left + width) / step, (top + height) / step
        part = image.resize((size[1], size[0]), resampling, box=edges)
    return torch.from_numpy(np.array(part.convert("RGB"))).permute(2, 0, 1)


# Pillow 13 resamples rows before columns when the height shrinks by more than twice what the width does (found by
# probing); older ones never did. The order decides where a bicubic overshoot is clipped: up to 14 levels at a hard edge
_ROWS_MAY_COME_FIRST = int(PIL.__version__.split(".")[0]) >= 13


def resize(image: Tensor, height: int, width: int, interpolation: str = "bicubic") -> Tensor:
    """Antialiased resize, columns before rows.

    Args:
        image: Pixels, uint8 (3, H, W).
        height: New height.
        width: New width.
        interpolation: ``bicubic`` or ``bilinear``.

    Returns:
        uint8 (3, height, width).
    """
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode=interpolation, antialias=True)[0]


def resize_as_pillow(image: Tensor, height: int, width: int, interpolation: str = "bicubic") -> Tensor:
    """As ``resize``, in the installed Pillow's order: within 1/255 of it (2/255 at 1 pixel in 10,000 if enlarged)."""
    old_height, old_width = int(image.shape[1]), int(image.shape[2])
    if _ROWS_MAY_COME_FIRST and old_height - height > max(2 * (old_width - width), 0):
        image = resize(image, height, old_width, interpolation)
    return resize(image, height, width, interpolation)
