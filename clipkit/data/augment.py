"""The training transform: a random crop each, then flips, colours and small affine moves on the whole batch at once.

Every draw is a function of (seed, position, view): an image comes out the same in any batch, on any rank, when resumed.
The crop is torchvision's ``RandomResizedCrop`` (Szegedy et al., 2015), open_clip's scale; all else is off at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipkit.data.colour import grey, jitter
from clipkit.data.draws import CROP, uniforms
from clipkit.data.pixels import INTERPOLATIONS, Pixels, crop_resized, size_of

_TRIES = 10
# columns of a sample's draws; a new augmentation takes the next, so that switching one on changes no other
_PLACE, _FLIP, _JITTER, _FACTORS, _GREY, _AFFINE, _COUNT = 20, 22, 23, 24, 28, 29, 34
_CHUNK = 1 << 16  # pixels changed at once: their floats stay in the processor's cache
FILLS = {"white": 255, "black": 0}


@dataclass(frozen=True)
class Affine:
    """A small random move, rotation, enlargement and shear.

    Args:
        degrees: Rotation is drawn from minus to plus this.
        translate: The move is at most these shares of width and height.
        scale: Enlargement is drawn from this range.
        shear: Horizontal shear in degrees, from minus to plus this.
    """

    degrees: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0


def _between(draw: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return low + draw * (high - low)


def crop_boxes(
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    draws: NDArray[np.float64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """Boxes as ``RandomResizedCrop`` draws them: ten tries of area and ratio, else the middle.

    Args:
        heights: Of the images (B,).
        widths: Of the images (B,).
        draws: In [0, 1), (B, 22).
        scale: Range of the box's share of the area.
        ratio: Range of width over height.

    Returns:
        top, left, height, width (B, 4).
    """
    area = (heights * widths)[:, None] * _between(draws[:, :_TRIES], *scale)
    aspect = np.exp(_between(draws[:, _TRIES : 2 * _TRIES], np.log(ratio[0]), np.log(ratio[1])))
    wide, high = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (wide > 0) & (wide <= widths[:, None]) & (high > 0) & (high <= heights[:, None])
    rows, first = np.arange(len(heights)), fits.argmax(1)
    own = widths / heights
    middle_wide = np.where(own > ratio[1], np.rint(heights * ratio[1]), widths)
    middle_high = np.where(own < ratio[0], np.rint(widths / ratio[0]), heights)
    found = fits.any(1)
    width = np.maximum(np.where(found, wide[rows, first], middle_wide), 1).astype(np.int64)
    height = np.maximum(np.where(found, high[rows, first], middle_high), 1).astype(np.int64)
    free_down, free_right = heights - height, widths - width
    top = np.where(found, (draws[:, _PLACE] * (free_down + 1)).astype(np.int64), free_down // 2)
    left = np.where(found, (draws[:, _PLACE + 1] * (free_right + 1)).astype(np.int64), free_right // 2)
    return np.stack([top, left, height, width], 1)


@dataclass(frozen=True)
class Augment:
    """Random crop and what is switched on, on a list of images.

    Args:
        size: Height and width that the tower takes.
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's width over height.
        flip: Probability of a mirror image.
        color_jitter: Strengths of brightness, contrast, saturation and hue as in ``ColorJitter``; None is off.
        color_jitter_prob: Probability that an image's colours are changed.
        grayscale: Probability that an image loses its colours.
        affine: A small random move; None is off.
        fill: ``white`` or ``black``: what a move uncovers.
        interpolation: ``bicubic`` or ``bilinear``, of the crop's resize.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    color_jitter: tuple[float, float, float, float] | None = None
    color_jitter_prob: float = 1.0
    grayscale: float = 0.0
    affine: Affine | None = None
    fill: str = "white"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale}: shares of the area, so 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: width over height, so 0 < low <= high")
        for value, allowed in ((self.fill, FILLS), (self.interpolation, INTERPOLATIONS)):
            if value not in allowed:
                raise ValueError(f"{value!r} is none of {', '.join(allowed)}")

    def __call__(self, images: Sequence[Pixels], *, seed: int, positions: NDArray[np.int64], view: int = 0) -> Tensor:
        """Augment.

        Args:
            images: B images, uint8 (3, H, W) or Pillow's, sizes may differ.
            seed: The run's seed.
            positions: The samples' positions in the plan (B,).
            view: Which view of the sample; 0 is ``image`` itself.

        Returns:
            uint8 (B, 3, *size).
        """
        draws = uniforms(seed, positions, CROP + 256 * view, _COUNT)
        sizes = np.array([size_of(image) for image in images], np.int64).reshape(-1, 2)
        boxes = crop_boxes(sizes[:, 0], sizes[:, 1], draws, self.scale, self.ratio)
        out = torch.empty((len(images), 3, *self.size), dtype=torch.uint8)
        for row, (image, box) in enumerate(zip(images, boxes.tolist(), strict=True)):
            out[row] = crop_resized(image, tuple(box), self.size, self.interpolation)
        if self.flip or self.color_jitter or self.grayscale or self.affine:
            step = max(1, _CHUNK // (self.size[0] * self.size[1]))
            for start in range(0, len(images), step):
                chunk = slice(start, start + step)
                out[chunk] = self._change(out[chunk], draws[chunk])
        return out

    def _change(self, images: Tensor, draws: NDArray[np.float64]) -> Tensor:
        """Everything but the crop; uint8 (B, 3, H, W) in and out."""
        if self.flip:
            mirrored = torch.from_numpy(np.nonzero(draws[:, _FLIP] < self.flip)[0])
            images[mirrored] = images[mirrored].flip(3)
        if not (self.color_jitter or self.grayscale or self.affine):
            return images
        pixels = images.float()
        if self.color_jitter:
            jitter(pixels, self._factors(draws))
        if self.grayscale:
            greyed = torch.from_numpy(np.nonzero(draws[:, _GREY] < self.grayscale)[0])
            pixels[greyed] = grey(pixels[greyed]).expand(-1, 3, -1, -1)
        if self.affine:
            pixels = _move(pixels, _matrices(self.affine, draws[:, _AFFINE:], self.size), FILLS[self.fill])
        return pixels.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)

    def _factors(self, draws: NDArray[np.float64]) -> NDArray[np.float32]:
        assert self.color_jitter is not None
        factors = np.empty((len(draws), 4))
        for column, strength in enumerate(self.color_jitter[:3]):
            factors[:, column] = _between(draws[:, _FACTORS + column], max(0.0, 1 - strength), 1 + strength)
        factors[:, 3] = _between(draws[:, _FACTORS + 3], -self.color_jitter[3], self.color_jitter[3])
        factors[draws[:, _JITTER] >= self.color_jitter_prob] = (1, 1, 1, 0)
        return factors.astype(np.float32)


def _matrices(affine: Affine, draws: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """Per image the map from output to input pixel offsets from the centre, (B, 2, 3)."""
    angle = np.radians(_between(draws[:, 0], -affine.degrees, affine.degrees))
    right = np.rint(_between(draws[:, 1], -affine.translate[0], affine.translate[0]) * size[1])
    down = np.rint(_between(draws[:, 2], -affine.translate[1], affine.translate[1]) * size[0])
    zoom = _between(draws[:, 3], *affine.scale)
    shear = np.tan(np.radians(_between(draws[:, 4], -affine.shear, affine.shear)))
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    linear = np.stack([np.stack([cos - shear * sin, sin + shear * cos], 1), np.stack([-sin, cos], 1)], 1)
    offset = -(linear[:, :, 0] * right[:, None] + linear[:, :, 1] * down[:, None])
    return np.concatenate([linear, offset[:, :, None]], 2).astype(np.float32)


def _move(pixels: Tensor, matrices: NDArray[np.float32], fill: int) -> Tensor:
    """Resample float32 (B, 3, H, W) bilinearly through the maps (B, 2, 3)."""
    height, width = pixels.shape[2:]
    # to grid_sample's units: from -1 to 1 over the image
    maps = torch.from_numpy(matrices * np.array([[[2 / width], [2 / height]]], np.float32))[:, None, None]
    x = (torch.arange(width, dtype=torch.float32) - (width - 1) / 2)[:, None]
    y = (torch.arange(height, dtype=torch.float32) - (height - 1) / 2)[:, None, None]
    # elementwise, not affine_grid: its matrix product may round by the size of the batch; (B, 1, W, 2) + (B, H, 1, 2)
    grid = (maps[..., 0] * x + maps[..., 2]) + maps[..., 1] * y
    moved = F.grid_sample(pixels - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved + fill
