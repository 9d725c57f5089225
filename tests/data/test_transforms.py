"""Our tensors against open_clip's own Pillow transform."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipkit.data.images import image_tensor
from clipkit.data.transforms import Preprocess


def picture(height, width, seed=0):
    """Smooth areas, edges and noise: what makes rounding differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([127 + 120 * np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)], -1)
    base[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 30)
    return Image.fromarray((base + rng.normal(0, 20, base.shape)).clip(0, 255).astype(np.uint8))


SIZES = [
    (64, 64),
    (65, 97),
    (97, 65),
    (33, 200),
    (301, 77),
    (50, 50),
    (8, 9),
    (480, 641),
    (640, 479),
    (337, 144),
    (1, 3),
]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (225, 225)])
def test_within_one_level_of_open_clip(mode, interpolation, size):
    theirs = open_clip.image_transform(
        size,
        is_train=False,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=77,
    )
    ours = Preprocess(size, resize_mode=mode, interpolation=interpolation, fill=77)
    for height, width in SIZES:
        image = picture(height, width)
        expected = theirs(image) * 255
        found = ours(image_tensor(image))
        assert found.dtype == torch.uint8
        assert found.shape == expected.shape == (3, *size)
        difference = (found - expected).abs().round()
        new_height, new_width = ours.resized(height, width)
        enlarged = new_height > height or new_width > width
        assert difference.max() <= (2 if enlarged else 1), (height, width)
        assert (difference > 1).float().mean() < 1e-4, (height, width)


def test_a_thin_image_padded_keeps_a_row():
    assert Preprocess((32, 32), resize_mode="longest")(torch.zeros(3, 1, 100, dtype=torch.uint8)).shape == (3, 32, 32)


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match="'crop' is none of shortest, longest, squash"):
        Preprocess((32, 32), resize_mode="crop")
