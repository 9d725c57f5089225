"""timm's training transform: RandAugment, AutoAugment, AugMix and random erasing, one image at a time, on Pillow.

timm draws from the global generators of ``random``, numpy and torch. Here they are seeded for each sample from (seed,
position, view) and put back afterwards, so a sample comes out the same in any batch and nothing else is disturbed. It is
several times slower than ``Augment``: count on more loader processes.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipkit.data.draws import TIMM, uniforms
from clipkit.data.pixels import PillowImage, Pixels


@dataclass(frozen=True)
class TimmAugment:
    """``timm.data.create_transform`` for training.

    Args:
        size: Height and width that the tower takes.
        mean: Mean of each channel of an image in [0, 1]: what fills, and the level of erasing noise.
        std: Standard deviation of each channel.
        auto: timm's text for its policies, such as ``rand-m9-mstd0.5-inc1``; None is none.
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's width over height.
        flip: Probability of a mirror image.
        color_jitter: Strengths of brightness, contrast, saturation and hue; timm leaves it out beside ``auto``.
        color_jitter_prob: Probability that an image's colours are changed.
        grayscale: Probability that an image loses its colours.
        re_prob: Probability that a rectangle is erased with noise.
        re_count: Most rectangles that are erased.
        interpolation: ``bicubic`` or ``bilinear``.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    auto: str | None = None
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    color_jitter: tuple[float, float, float, float] | None = None
    color_jitter_prob: float = 1.0
    grayscale: float = 0.0
    re_prob: float = 0.0
    re_count: int = 1
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        try:
            _pipeline(self)
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise ValueError(f"timm cannot build the augmentation {self.auto!r}: {error!r}") from error

    def __call__(self, images: Sequence[Pixels], *, seed: int, positions: NDArray[np.int64], view: int = 0) -> Tensor:
        """Augment; arguments and result are those of ``Augment``, uint8 (B, 3, *size)."""
        pipeline = _pipeline(self)
        draws = (uniforms(seed, positions, TIMM + 256 * view, 1)[:, 0] * 2**32).astype(np.uint32)
        out = torch.empty((len(images), 3, *self.size), dtype=torch.uint8)
        with _generators_put_back():
            for row, (pixels, drawn) in enumerate(zip(images, draws.tolist(), strict=True)):
                random.seed(drawn)
                np.random.seed(drawn)
                torch.default_generator.manual_seed(drawn)  # torch.manual_seed would reseed the GPU's as well
                out[row] = pipeline(_pillow(pixels))
        return out


def _pillow(pixels: Pixels) -> Image.Image:
    if isinstance(pixels, PillowImage):
        return pixels.image.convert("RGB")
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@lru_cache(maxsize=32)
def _pipeline(augment: TimmAugment) -> Callable[[Image.Image], Tensor]:
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms_factory import create_transform

    make: Any = create_transform  # its annotations know no absent jitter
    transform = make(
        (3, *augment.size),
        is_training=True,
        use_prefetcher=True,  # uint8 out: normalisation is the tower's
        auto_augment=augment.auto,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.flip,
        color_jitter=augment.color_jitter,
        color_jitter_prob=None if augment.color_jitter_prob == 1 else augment.color_jitter_prob,  # 1 draws nothing
        grayscale_prob=augment.grayscale,
        interpolation=augment.interpolation,
        mean=augment.mean,
        std=augment.std,
    )
    if not augment.re_prob:
        return transform  # type: ignore[no-any-return]
    erasing: Any = RandomErasing
    erase = erasing(augment.re_prob, mode="pixel", max_count=augment.re_count, device="cpu")
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (augment.mean, augment.std))

    def with_erasing(image: Image.Image) -> Tensor:  # timm's noise is in normalised units
        erased: Tensor = erase((transform(image).float() - mean) / std) * std + mean
        return erased.round_().clamp_(0, 255).to(torch.uint8)

    return with_erasing


@contextlib.contextmanager
def _generators_put_back() -> Iterator[None]:
    python, numpy, own = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(own)
