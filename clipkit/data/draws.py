"""Random numbers as pure functions of named integers, the same on every machine and with every numpy.

Only the raw words of the Philox generator are used (Salmon et al., 2011: its stream is fixed by definition); numpy may
change what ``Generator.permutation`` makes of them from one release to the next.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CROP, CAPTION, TIMM = 0, 1, 2  # streams of draws at one position; a new one gets the next number

_WORD = (1 << 64) - 1


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """A permutation of ``range(size)`` drawn by the key's integers.

    Args:
        size: How many.
        key: Non-negative integers that name the draw.
    """
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(words, kind="stable")


def below(limit: int, *key: int) -> int:
    """An integer from 0 to ``limit - 1`` drawn by the key's integers."""
    return int(np.random.Philox(np.random.SeedSequence(key)).random_raw()) * limit >> 64


def uniforms(seed: int, positions: NDArray[np.int64], stream: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) for each position, whatever other positions are asked for with it.

    Args:
        seed: The run's seed.
        positions: Non-negative positions (P,).
        stream: What they are for, and which view.
        count: How many for each.

    Returns:
        (P, count).
    """
    generator = np.random.Philox(key=[seed & _WORD, stream])
    state = generator.state
    words = np.empty((len(positions), count), np.uint64)
    for row, position in enumerate(positions.tolist()):
        # the low word counts the blocks of one position; setting the state is 6 times cheaper than a new generator
        state["state"]["counter"][:] = (0, position, 0, 0)
        generator.state = state
        words[row] = generator.random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
