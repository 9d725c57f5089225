"""How often each sample is planned in an epoch: factors by class or by a column, made whole numbers of copies.

By class the factor is ``r(c) = max(1, (t / f(c)) ** p)`` with ``f(c)`` the class's share of the samples (Gupta et al.
2019, LVIS, appendix: ``p = 1/2``). Copies of one sample may meet in a batch; ``duplicates`` of the loss says what they are
to each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipkit.data.index import Ints

MOST_COPIES = 1_000


def class_factors(counts: Ints, threshold: float, power: float) -> NDArray[np.float64]:
    """The factor of every class (C,).

    Args:
        counts: Samples of each class (C,), positive.
        threshold: Share of the samples below which a class is repeated.
        power: 1 would bring every such class up to the threshold, 0 repeats none.

    Example:
        >>> class_factors(np.array([96, 4]), threshold=0.16, power=0.5)
        array([1., 2.])
    """
    share: NDArray[np.float64] = counts / counts.sum()
    return np.maximum(1.0, (threshold / share) ** power)


def copies(factors: NDArray[np.float64], start: float) -> Ints:
    """Whole copies of every sample (N,) by systematic rounding: their sum is the factors' to within one.

    Args:
        factors: Not negative (N,).
        start: In (0, 1): where the first copy of the fractions falls.

    Example:
        >>> copies(np.array([1.0, 0.5, 0.5, 2.25, 0.25]), 0.5)
        array([1, 1, 0, 2, 1])
    """
    whole = np.floor(factors)
    reached = np.floor(np.cumsum(factors - whole) + start)
    return (whole + np.diff(reached, prepend=0.0)).astype(np.int64)
