"""What becomes of read samples: fields' transforms, tokens and decoding, all of it by the position in the run.

A stage (a lower resolution, shorter texts: CLIPA, https://arxiv.org/abs/2305.07017) is chosen by number in the request that
a worker gets, so workers hold no state, need no restart, and a resumed run is in the right stage at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.augment import Augment
from clipkit.data.images import Decode
from clipkit.data.pixels import Pixels
from clipkit.data.timm_augment import TimmAugment
from clipkit.data.transforms import Preprocess

IMAGE, VIEW = "image", "image_view"
Transform = Augment | TimmAugment | Preprocess
Ends = int | Callable[[int, int | None], int]
"""A position, or a function of batch size and samples of an epoch that tells it."""


@dataclass(frozen=True)
class Stage:
    """How samples become a batch.

    Args:
        images: Field (``image``, ``image_view1``, ...) to the transform that makes it of the sample's image.
        tokenize: Captions to tokens (B, L).
        decode: How image files become pixels.
        name: For messages.
    """

    images: Mapping[str, Transform]
    tokenize: Callable[[list[str]], Tensor]
    decode: Decode = field(default_factory=Decode)
    name: str = ""

    def __post_init__(self) -> None:
        for name in self.images:
            view_number(name)


def view_number(name: str) -> int:
    """0 of ``image``, N of ``image_viewN``: each view has draws of its own.

    Raises:
        ValueError: If it is neither.
    """
    number = name.removeprefix(VIEW)
    if name != IMAGE and not (name.startswith(VIEW) and number.isdecimal() and number[0] != "0"):
        raise ValueError(f"{name!r} is no view of an image; views are image_view1, image_view2, ...")
    return 0 if name == IMAGE else int(number)


def transformed(
    transform: Transform, name: str, images: Sequence[Pixels], *, seed: int, positions: NDArray[np.int64]
) -> Tensor:
    """One field of a batch, uint8 (B, 3, H, W)."""
    if isinstance(transform, Preprocess):
        return transform.batch(images)
    return transform(images, seed=seed, positions=positions, view=view_number(name))


class Schedule:
    """Which stage a batch is in: that of its first sample, so that a stage begins at a batch boundary.

    Args:
        stages: All but the last with the position where they end.
        batch_size: Samples of a batch over all ranks.
        length: Samples of the run.

    Raises:
        ValueError: If a stage would hold no batch.
    """

    def __init__(self, stages: Sequence[tuple[str, int]], *, batch_size: int, length: int) -> None:
        self.ends: list[int] = []
        start = 0
        for name, end in stages:
            if end <= start or start >= length:
                why = f"its start, {start:,}" if end <= start else f"the run, {length:,} samples"
                raise ValueError(f"stage {name!r} ends at {end:,} samples and holds no batch: compare {why}")
            self.ends.append(-(-end // batch_size) * batch_size)
            start = self.ends[-1]

    def __call__(self, position: int) -> int:
        """The number of the stage at a batch's first position."""
        return bisect_right(self.ends, position)
