"""timm's transform as a pure function of (seed, position, view)."""

import pickle
import random

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from clipkit.data.draws import TIMM, uniforms
from clipkit.data.timm_augment import TimmAugment

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.26, 0.27)
STRONG = TimmAugment((24, 24), MEAN, STD, auto="rand-m9-mstd0.5-inc1", flip=0.5, scale=(0.3, 1.0), re_prob=0.5)


def images(count):
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, 256, (3, 40, 30), np.uint8)) for _ in range(count)]


def test_a_sample_is_the_same_in_any_batch_and_in_a_copy():
    batch, positions = images(12), np.arange(12) * 5
    whole = STRONG(batch, seed=1, positions=positions)
    assert whole.shape == (12, 3, 24, 24)
    assert whole.dtype == torch.uint8
    for rows in ([3], [11, 0], list(range(1, 12, 2))):
        part = STRONG([batch[row] for row in rows], seed=1, positions=positions[rows])
        assert torch.equal(part, whole[rows])
    copy = pickle.loads(pickle.dumps(STRONG))  # noqa: S301
    assert torch.equal(copy(batch, seed=1, positions=positions), whole)
    for change in ({"seed": 2}, {"view": 1}, {"positions": positions + 1}):
        assert not torch.equal(STRONG(batch, **({"seed": 1, "positions": positions} | change)), whole)


def test_the_global_generators_go_on_as_if_nothing_were():
    def draws():
        return random.random(), np.random.rand(), float(torch.rand(1))

    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    expected = draws()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    STRONG(images(2), seed=0, positions=np.arange(2))
    assert draws() == expected


def test_it_is_open_clips_use_timm():
    image = images(1)[0]
    options = {"scale": (0.4, 0.9), "ratio": (0.8, 1.2), "color_jitter": (0.4, 0.4, 0.4, 0.1)}
    theirs = image_transform(24, is_train=True, mean=MEAN, std=STD, aug_cfg={"use_timm": True, **options})
    ours = TimmAugment((24, 24), MEAN, STD, **options)
    found = ours([image], seed=3, positions=np.array([4]))[0]
    drawn = int(uniforms(3, np.array([4]), TIMM, 1)[0, 0] * 2**32)
    random.seed(drawn), np.random.seed(drawn), torch.manual_seed(drawn)
    normalised = theirs(Image.fromarray(image.permute(1, 2, 0).numpy()))
    expected = (normalised * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    assert (found - expected).abs().max() < 0.01


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="'rend-m9'"):
        TimmAugment((8, 8), MEAN, STD, auto="rend-m9")
