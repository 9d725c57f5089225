import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.data.hashes import FLAT, distinct, look, looks, near, thumbnail
from clipkit.data.images import decode_image

RNG = np.random.default_rng(0)


def photo(seed, width=120, height=90):
    """A picture with structure at every scale, as photographs have it."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for step in (45, 15, 5):
        coarse = rng.uniform(-step, step, (height // step + 1, width // step + 1, 3))
        pixels += np.asarray(
            torch.nn.functional.interpolate(
                torch.tensor(coarse).permute(2, 0, 1)[None], (height, width), mode="bicubic"
            )
        )[0].transpose(1, 2, 0)
    return Image.fromarray((pixels * 1.2 + 128).clip(0, 255).astype(np.uint8))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def saved(image, quality, share):
    buffer = io.BytesIO()
    image.resize((int(image.width * share), int(image.height * share))).save(buffer, "JPEG", quality=quality)
    return decode_image(buffer.getvalue())


@pytest.mark.parametrize(("quality", "share"), [(90, 1.0), (60, 1.0), (85, 0.5), (85, 2.0)])
def test_a_copy_of_another_quality_or_size_is_near_and_other_pictures_are_not(quality, share):
    images = [photo(seed) for seed in range(60)]
    first = looks(np.stack([thumbnail(pixels(image)) for image in images]))
    again = looks(np.stack([thumbnail(saved(image, quality, share)) for image in images]))
    assert (near(*again, first).partner == np.arange(60)).mean() >= 0.95
    assert (near(*first).partner == -1).all()


def test_a_picture_of_one_colour_has_no_look():
    assert look(torch.full((3, 40, 30), 200, dtype=torch.uint8)) == (FLAT, 0xC8C8C8)
    assert look(pixels(photo(1)))[0] not in (FLAT, look(pixels(photo(2)))[0])


def popcount(values):
    return np.array([bin(value).count("1") for value in values.tolist()])


def test_near_pairs_are_those_of_comparing_all_with_all():
    """Clouds of hashes around 30 centres, up to 8 bits off: many pairs at every distance around the limit."""
    centres = RNG.integers(1 << 62, size=30).astype(np.uint64)
    values = np.repeat(centres, 20)
    for row in range(len(values)):
        for bit in RNG.choice(64, RNG.integers(0, 5), replace=False):
            values[row] ^= np.uint64(1) << np.uint64(bit)
    colours = RNG.choice(np.array([0x101010, 0x181818, 0x404040], np.uint32), len(values))
    bits = popcount((values[:, None] ^ values).reshape(-1)).reshape(len(values), -1)
    levels = np.abs((colours & 255).astype(int)[:, None] - (colours & 255).astype(int))
    close = (bits <= 3) & (levels <= 16) & ~np.eye(len(values), dtype=bool)
    found = near(values, colours)
    assert found.skipped == 0
    assert ((found.partner >= 0) == close.any(1)).all()
    has = np.flatnonzero(found.partner >= 0)
    nearest = np.where(close, bits * 256 + levels, 1 << 20).min(1)
    assert (bits[has, found.partner[has]] * 256 + levels[has, found.partner[has]] == nearest[has]).all()
    assert 0 < len(has) < len(values)
    across = near(values[:100], colours[:100], (values[100:], colours[100:]))
    assert ((across.partner >= 0) == close[:100, 100:].any(1)).all()


def test_comparisons_that_are_left_out_are_counted(monkeypatch):
    monkeypatch.setattr("clipkit.data.hashes.MOST_COMPARED", 2)
    values = np.arange(1, 9, dtype=np.uint64) << np.uint64(60)  # all agree in the bands below
    assert near(values, np.zeros(8, np.uint32)).skipped > 0


def test_equal_looks_are_one():
    first, group = distinct(np.array([5, 3, 5, 5], np.uint64), np.array([1, 1, 1, 2], np.uint32))
    assert sorted(first.tolist()) == [0, 1, 3]
    assert group[0] == group[2] != group[3]
    assert [first[at] for at in group] == [0, 1, 0, 3]


def test_nothing_is_near_nothing():
    empty = np.empty(0, np.uint64), np.empty(0, np.uint32)
    assert len(near(*empty).partner) == 0
    assert near(np.array([7], np.uint64), np.array([0], np.uint32), empty).partner.tolist() == [-1]
