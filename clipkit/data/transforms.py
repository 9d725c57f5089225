"""The evaluation transform: resize and crop on uint8 tensors, within 1/255 of open_clip's Pillow one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.data.pixels import INTERPOLATIONS, Pixels, crop_resized, size_of

RESIZE_MODES = ("shortest", "longest", "squash")


def center_crop_or_pad(image: Tensor, height: int, width: int, fill: int = 0, *, down: bool = False) -> Tensor:
    """The middle of an image (3, H, W), with a border of ``fill`` where it is smaller; (3, height, width).

    Half a pixel of an odd margin goes to even, or ``down``.
    """
    below, right = max(height - image.shape[1], 0), max(width - image.shape[2], 0)
    if below or right:
        border = (right // 2, (right + 1) // 2, below // 2, (below + 1) // 2)
        image = F.pad(image, border, value=fill)
    # Python's round goes to even, as torchvision's and open_clip's crops do
    half = math.floor if down else round
    top, left = half((image.shape[1] - height) / 2), half((image.shape[2] - width) / 2)
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
        crop_rounding: Where half a pixel of an odd margin goes: ``even``, as in open_clip and torchvision, or ``down``, as in transformers.
    """

    size: tuple[int, int]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0
    crop_rounding: str = "even"

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.resize_mode, RESIZE_MODES),
            (self.interpolation, INTERPOLATIONS),
            (self.crop_rounding, ("even", "down")),
        ):
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

    def __call__(self, image: Pixels) -> Tensor:
        """Resize and crop.

        Args:
            image: Pixels, uint8 (3, H, W), or a Pillow image.

        Returns:
            uint8 (3, *size).
        """
        # open_clip resizes the short side to a size that is no square with bicubic, whatever was asked for
        square = self.size[0] == self.size[1] or self.resize_mode != "shortest"
        whole = size_of(image)
        goal = self.resized(*whole)
        resized = crop_resized(image, (0, 0, *whole), goal, self.interpolation if square else "bicubic")
        return center_crop_or_pad(resized, *self.size, fill=self.fill, down=self.crop_rounding == "down")

    def batch(self, images: Sequence[Pixels]) -> Tensor:
        """Several images of any sizes: uint8 (B, 3, *size)."""
        return torch.stack([self(image) for image in images])
