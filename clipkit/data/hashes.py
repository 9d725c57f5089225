"""Which pictures look alike: a 64-bit perceptual hash and a mean colour, and the pairs of them that are near, without O(N^2).

The hash is the DCT one of Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010), section 3.2.
Near hashes are found as in Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling" (2007): at most 3 of 64
bits apart, two hashes agree in at least 2 of 5 bands, so only those that do are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.pixels import resize

Looks = NDArray[np.uint64]
Colours = NDArray[np.uint32]

SIDE = 32
MOST_BITS = 3
MOST_COLOUR = 16  # levels of 255 by which mean colours may differ: hashes know brightness alone
MOST_COMPARED = 1000
FLAT = 0
"""The hash of a picture that has no structure to tell it by; no other picture has it, the lowest bit is that of the mean."""
_FAR = np.int16(1 << 14)
_FLAT_BELOW = 16.0  # in levels: the DCT is orthonormal, a step edge of one level over the whole picture gives about 16
_NOISE = 4.0  # coefficients that compression makes and loses; without it the empty ones of a drawing are random bits
_BANDS = tuple(((1 << width) - 1) << at for at, width in ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12)))


def _dct() -> NDArray[np.float32]:
    """The lowest 8 rows of the orthonormal DCT-II of 32 points, (8, 32)."""
    angle = np.pi * (2 * np.arange(SIDE) + 1) * np.arange(8)[:, None] / (2 * SIDE)
    rows = np.array(np.cos(angle) * np.sqrt(2 / SIDE), np.float32)
    rows[0] /= np.sqrt(2)
    return rows


def thumbnail(image: Tensor) -> NDArray[np.uint8]:
    """What a picture's look is told by: RGB pixels uint8 (3, H, W) to (3, 32, 32)."""
    return np.asarray(resize(image, SIDE, SIDE, "bilinear").numpy())


def looks(thumbnails: NDArray[np.uint8]) -> tuple[Looks, Colours]:
    """Hash pictures by how they look.

    Args:
        thumbnails: RGB, (N, 3, 32, 32).

    Returns:
        Hashes (N,) of the lowest 8 x 8 frequencies of brightness, one bit each, ``FLAT`` for pictures of one colour; and
        mean colours (N,), 0xRRGGBB.
    """
    pixels = thumbnails.reshape(-1, 3, SIDE, SIDE).astype(np.float32)
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), pixels, (0, 1))
    transform = _dct()
    waves = (transform @ grey @ transform.T).reshape(-1, 64)
    threshold = np.maximum(np.median(waves, axis=1, keepdims=True), _NOISE)
    bits = waves > threshold
    bits[:, 0] = True  # the mean tells nothing, but sets these hashes apart from FLAT
    found = np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0].astype(np.uint64)
    found[np.abs(waves[:, 1:]).max(axis=1) < _FLAT_BELOW] = FLAT
    red, green, blue = np.rint(pixels.mean((2, 3))).astype(np.uint32).T
    return found, red << 16 | green << 8 | blue


def look(image: Tensor) -> tuple[int, int]:
    """Hash and mean colour of one picture, RGB uint8 (3, H, W)."""
    found, colours = looks(thumbnail(image)[None])
    return int(found[0]), int(colours[0])


@dataclass(frozen=True)
class Near:
    """Which pictures have a near one.

    Args:
        partner: For each picture the number of the nearest one that was found (N,), -1 for none.
        skipped: Comparisons left out, because more than ``MOST_COMPARED`` pictures agree in two bands with one.
    """

    partner: NDArray[np.int64]
    skipped: int


def near(looks: Looks, colours: Colours, others: tuple[Looks, Colours] | None = None) -> Near:
    """For each picture another one that looks nearly the same: at most 3 bits and 16 levels of mean colour apart.

    Ten sorts of the hashes; takes 40 bytes a picture while it runs. Pictures of one look and colour should be given once:
    each is compared with at most ``MOST_COMPARED`` of those in its bands, and what is left out is counted.

    Args:
        looks: Hashes (N,), none of them ``FLAT``.
        colours: Mean colours (N,).
        others: Hashes and colours (M,) to find partners in; None finds them among the pictures themselves.
    """
    to_looks, to_colours = others if others is not None else (looks, colours)
    partner = np.full(len(looks), -1, np.int64)
    nearest = np.full(len(looks), _FAR, np.int16)
    skipped = 0
    for bands in combinations(_BANDS, 2):
        mask = np.uint64(reduce(int.__or__, bands))
        order = np.argsort(to_looks & mask, kind="stable")
        keys = (to_looks & mask)[order]
        if others is None:  # each with those behind it alone, and the find is noted on both sides
            rows, first = order, np.arange(1, len(order) + 1)
            last = np.searchsorted(keys, keys, side="right")
        else:
            rows, first = np.arange(len(looks)), np.searchsorted(keys, looks & mask)
            last = np.searchsorted(keys, looks & mask, side="right")
        skipped += int(np.maximum(last - first - MOST_COMPARED, 0).sum())
        for _ in range(MOST_COMPARED):
            open_ = first < last
            if not open_.any():
                break
            rows, first, last = rows[open_], first[open_], last[open_]
            columns = order[first]
            apart = _apart(looks[rows], to_looks[columns], colours[rows], to_colours[columns])
            for one, other in ((rows, columns), (columns, rows))[: 1 if others is not None else 2]:
                closer = apart < nearest[one]
                partner[one[closer]], nearest[one[closer]] = other[closer], apart[closer]
            first = first + 1
    return Near(partner, skipped)


def _apart(a: Looks, b: Looks, colour_a: Colours, colour_b: Colours) -> NDArray[np.int16]:
    """How far apart pairs are, bits before colours; ``_FAR`` beyond either limit."""
    differing, bits = a ^ b, np.zeros(len(a), np.int16)
    for _ in range(MOST_BITS):
        bits += differing != 0
        differing &= differing - np.uint64(1)  # takes the lowest set bit away
    levels = np.zeros(len(a), np.int16)
    for shift in (0, 8, 16):
        channel = (colour_a >> shift & 255).astype(np.int16) - (colour_b >> shift & 255).astype(np.int16)
        np.maximum(levels, np.abs(channel), out=levels)
    return np.where((differing == 0) & (levels <= MOST_COLOUR), bits * 256 + levels, _FAR).astype(np.int16)


def distinct(looks: Looks, colours: Colours) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pictures of equal look and colour as one: the number of the first of each (D,), and for every picture which it is (N,)."""
    order = np.lexsort((colours, looks))
    fresh = np.ones(len(order), np.bool_)
    fresh[1:] = (np.diff(looks[order]) != 0) | (np.diff(colours[order]) != 0)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(fresh) - 1
    return order[fresh], group
