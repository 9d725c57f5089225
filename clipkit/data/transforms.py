"""The evaluation transform: resize and crop on uint8 tensors, within 1/255 of open_clip's Pillow one."""

from __future__ import annotations

from dataclasses import dataclass

import PIL
import torch
from torch import Tensor
from torch.nn import functional as F

RESIZE_MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")


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


def center_crop_or_pad(image: Tensor, height: int, width: int, fill: int = 0) -> Tensor:
    """The middle of an image (3, H, W), with a border of ``fill`` where it is smaller; (3, height, width)."""
    down, right = max(height - image.shape[1], 0), max(width - image.shape[2], 0)
    if down or right:
        border = (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2)
        image = F.pad(image, border, value=fill)
    # Python's round goes to even, as torchvision's and open_clip's crops do
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class Preprocess:
    """Image to what the model was trained on; normalisation is the tower's.

    Args:
        size: Height and width that the tower takes.
        resize_mode: ``shortest`` (resize the short side, crop the middle), ``longest`` (resize the long side, pad) or
            ``squash``.
        interpolation: ``bicubic`` or ``bilinear``.
        fill: Grey level of the border under ``longest``, 0 to 255.
    """

    size: tuple[int, int]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0

    def __post_init__(self) -> None:
        for value, allowed in ((self.resize_mode, RESIZE_MODES), (self.interpolation, INTERPOLATIONS)):
            if value not in allowed:
                raise ValueError(f"{value!r} is none of {', '.join(allowed)}")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize of an image of the given ones, as open_clip rounds them."""
        goal_height, goal_width = self.size
        if self.resize_mode == "squash":
            return self.size
        if self.resize_mode == "shortest" and goal_height == goal_width:  # torchvision's Resize: rounds down
            short = min(height, width)
            return max(goal_height * height // short, 1), max(goal_height * width // short, 1)
        ratios = height / goal_height, width / goal_width
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)

    def __call__(self, image: Tensor) -> Tensor:
        """Resize and crop.

        Args:
            image: Pixels, uint8 (3, H, W).

        Returns:
            uint8 (3, *size).
        """
        # open_clip resizes the short side to a size that is no square with bicubic, whatever was asked for
        square = self.size[0] == self.size[1] or self.resize_mode != "shortest"
        height, width = self.resized(int(image.shape[1]), int(image.shape[2]))
        image = resize_as_pillow(image, height, width, self.interpolation if square else "bicubic")
        return center_crop_or_pad(image, *self.size, fill=self.fill)

    def batch(self, images: list[Tensor]) -> Tensor:
        """Several images of any sizes: uint8 (B, 3, *size)."""
        return torch.stack([self(image) for image in images])
