"""A filter over columns, in the three-valued logic of databases: a missing value makes a comparison unknown.

What is unknown passes neither as itself nor under `not`: a sample without a safety score is not safe.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.config.expression import Compare, Expression, Not

Mask = NDArray[np.bool_]

_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


class Verdict(NamedTuple):
    """Of every sample (N,): whether the filter surely holds, and whether it surely does not; neither is unknown."""

    holds: Mask
    fails: Mask


def evaluate(expression: Expression, column: Callable[[str], NDArray[np.float64]]) -> Verdict:
    """Hold samples against a filter.

    Args:
        expression: The filter.
        column: Gives a column by its name (N,), NaN where a sample has no value.
    """
    if isinstance(expression, Not):
        verdict = evaluate(expression.of, column)
        return Verdict(verdict.fails, verdict.holds)
    if isinstance(expression, Compare):
        left, right = (
            column(side) if isinstance(side, str) else np.float64(side) for side in (expression.left, expression.right)
        )
        known = ~(np.isnan(left) | np.isnan(right))
        true = np.asarray(_SIGNS[expression.sign](left, right), bool)
        return Verdict(true & known, ~true & known)
    holds, fails = zip(*(evaluate(part, column) for part in expression.parts), strict=True)
    every, some = np.logical_and.reduce, np.logical_or.reduce
    return Verdict(every(holds), some(fails)) if expression.word == "and" else Verdict(some(holds), every(fails))
