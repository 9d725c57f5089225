"""Augmentation: the same bits in any batch, torchvision's operations, draws in their ranges."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from clipkit.data import augment as module
from clipkit.data.augment import Affine, Augment, crop_boxes
from clipkit.data.colour import grey, jitter
from clipkit.data.draws import below, permutation, uniforms

EVERYTHING = Augment(
    (48, 56),
    scale=(0.3, 1.0),
    flip=0.5,
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    color_jitter_prob=0.8,
    grayscale=0.3,
    affine=Affine(degrees=15, translate=(0.1, 0.2), scale=(0.8, 1.2), shear=5),
)


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 90, (count, 2))
    return [torch.from_numpy(rng.integers(0, 256, (3, h, w), np.uint8)) for h, w in sizes.tolist()]


def test_a_sample_is_the_same_in_any_batch():
    batch, positions = images(150), np.arange(150) * 977 + 5
    whole = EVERYTHING(batch, seed=3, positions=positions)
    assert whole.shape == (150, 3, 48, 56)
    for rows in ([7], [149], [3, 7], range(1, 150, 3), range(100, 130), list(reversed(range(65)))):
        rows = list(rows)
        part = EVERYTHING([batch[row] for row in rows], seed=3, positions=positions[rows])
        assert torch.equal(part, whole[rows])


def test_threads_do_not_matter():
    batch, positions = images(20), np.arange(20)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(EVERYTHING(batch, seed=0, positions=positions))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_seed_position_and_view_each_change_it():
    batch = images(1)
    first = EVERYTHING(batch, seed=0, positions=np.array([1]))
    for seed, position, view in [(1, 1, 0), (0, 2, 0), (0, 1, 1)]:
        assert not torch.equal(EVERYTHING(batch, seed=seed, positions=np.array([position]), view=view), first)


def test_switching_one_thing_on_leaves_the_crop():
    batch, positions = images(30), np.arange(30)
    plain = Augment((32, 32))(batch, seed=0, positions=positions)
    flipped = Augment((32, 32), flip=0.5)(batch, seed=0, positions=positions)
    same = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 5 < mirrored.sum() < 25
    moved = Augment((32, 32), affine=Affine())(batch, seed=0, positions=positions)
    assert torch.equal(moved, plain)
    assert torch.equal(Augment((32, 32), color_jitter=(0, 0, 0, 0))(batch, seed=0, positions=positions), plain)


def test_boxes_are_those_of_random_resized_crop():
    scale, ratio, count = (0.08, 1.0), (3 / 4, 4 / 3), 4000
    heights, widths = np.full(count, 100), np.full(count, 160)
    boxes = crop_boxes(heights, widths, uniforms(0, np.arange(count), 0, 22), scale, ratio)
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 100).all()
    assert (left + width <= 160).all()
    torch.manual_seed(0)
    blank = torch.zeros(3, 100, 160)
    theirs = np.array([RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(count)])
    for column in range(4):
        ours_mean, their_mean = boxes[:, column].mean(), theirs[:, column].mean()
        error = theirs[:, column].std() / math.sqrt(count)
        assert abs(ours_mean - their_mean) < 6 * error


def test_an_image_that_no_box_fits_gives_its_middle():
    boxes = crop_boxes(np.array([10, 100]), np.array([100, 10]), np.full((2, 22), 0.99), (0.9, 1.0), (3 / 4, 4 / 3))
    assert boxes.tolist() == [[0, 43, 10, 13], [43, 0, 13, 10]]


def test_crop_and_resize_equal_torchvision():
    image = images(1, seed=4)[0]
    draws = uniforms(9, np.array([4]), 0, 40)
    box = crop_boxes(np.array([image.shape[1]]), np.array([image.shape[2]]), draws, (0.5, 0.9), (3 / 4, 4 / 3))[0]
    expected = tv.resized_crop(image, *box.tolist(), [32, 32], InterpolationMode.BICUBIC, antialias=True)
    found = Augment((32, 32), scale=(0.5, 0.9))([image], seed=9, positions=np.array([4]))[0]
    assert (found.float() - expected.float()).abs().max() <= 1


@pytest.mark.parametrize(
    ("column", "factor", "theirs"),
    [
        (0, 1.4, tv.adjust_brightness),
        (1, 0.6, tv.adjust_contrast),
        (2, 1.7, tv.adjust_saturation),
        (3, -0.13, tv.adjust_hue),
    ],
)
def test_colours_equal_torchvision(column, factor, theirs):
    image = torch.stack([picture[:, :20, :20] for picture in images(5)])
    factors = np.array([[1, 1, 1, 0]] * 5, np.float32)
    factors[:, column] = factor
    pixels = image.float()
    jitter(pixels, factors)
    expected = torch.stack([theirs(one, factor) for one in image])
    assert (pixels.round() - expected).abs().max() <= 1
    assert torch.equal(grey(image.float()).to(torch.uint8), tv.rgb_to_grayscale(image))


def test_moves_equal_torchvision():
    image = torch.rand(1, 3, 31, 44) * 255
    affine = Affine(degrees=30, translate=(0.2, 0.3), scale=(0.7, 1.4), shear=12)
    matrices = module._matrices(affine, np.array([[0.9, 0.2, 0.8, 0.3, 0.85, 0, 0]]), (31, 44))
    shift = [round((0.4 - 1) * 0.2 * 44), round((1.6 - 1) * 0.3 * 31)]
    expected = tv.affine(image, 24.0, shift, 0.7 + 0.3 * 0.7, [0.7 * 12, 0.0], InterpolationMode.BILINEAR, fill=[0.0])
    inside = module._move(torch.ones_like(image), matrices, 0) > 0.9999  # torchvision darkens the rim twice
    assert inside.float().mean() > 0.3
    assert (module._move(image, matrices, 255) - expected)[inside].abs().max() < 0.1


def test_what_a_move_uncovers_is_filled():
    image = [torch.full((3, 40, 40), 100, dtype=torch.uint8)]
    for fill, level in (("white", 255), ("black", 0)):
        shifted = Augment((40, 40), scale=(1, 1), ratio=(1, 1), affine=Affine(degrees=45), fill=fill)
        found = shifted(image, seed=0, positions=np.array([3]))
        assert found[0, 0, 0, 0] == level
        assert found[0, 0, 20, 20] == 100


def test_draws_are_uniform_and_fixed_for_ever():
    draws = uniforms(7, np.arange(2000), 0, 16)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.1
    assert len(np.unique(draws)) == draws.size
    # what was trained once must come again: these values never change
    assert permutation(8, 1, 2, 3).tolist() == [1, 2, 4, 6, 5, 0, 7, 3]
    assert below(1000, 1, 2, 3) == 719
    assert uniforms(1, np.array([5]), 0, 2)[0].tolist() == [0.24332057453742428, 0.8321975864877551]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": (0.9, 1.1)}, "scale"),
        ({"ratio": (0, 1)}, "ratio"),
        ({"interpolation": "area"}, "'area'"),
        ({"fill": "red"}, "'red'"),
    ],
)
def test_bad_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        Augment((8, 8), **options)
