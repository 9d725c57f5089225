"""Filters against a slow loop in three-valued logic."""

import operator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.config.expression import Compare, Many, Not, parse_expression
from clipkit.data.filters import evaluate

SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}
VALUES = st.sampled_from([0.0, 1.0, 2.0])
COMPARISONS = st.builds(
    Compare, st.sampled_from(["a", "b"]), st.sampled_from(list(SIGNS)), VALUES | st.sampled_from(["a", "b"])
)
EXPRESSIONS = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(Many, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=8,
)


def slowly(expression, row):
    """True, False, or None where it cannot be told."""
    if isinstance(expression, Compare):
        left, right = row[expression.left], row.get(expression.right, expression.right)
        return None if np.isnan(left) or np.isnan(right) else SIGNS[expression.sign](left, right)
    if isinstance(expression, Not):
        inside = slowly(expression.of, row)
        return None if inside is None else not inside
    parts = [slowly(part, row) for part in expression.parts]
    decisive = expression.word == "or"
    return decisive if decisive in parts else None if None in parts else not decisive


def spelled(expression):
    if isinstance(expression, Compare):
        return f"{expression.left} {expression.sign} {expression.right}"
    if isinstance(expression, Not):
        return f"not ({spelled(expression.of)})"
    return f" {expression.word} ".join(f"({spelled(part)})" for part in expression.parts)


@given(EXPRESSIONS, st.lists(st.tuples(VALUES | st.just(np.nan), VALUES | st.just(np.nan)), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_each_sample_as_a_slow_loop_says(expression, rows):
    columns = {name: np.array([row[at] for row in rows]) for at, name in enumerate("ab")}
    verdict = evaluate(parse_expression(spelled(expression)), columns.__getitem__)
    for at, row in enumerate(rows):
        expected = slowly(expression, dict(zip("ab", row, strict=True)))
        assert (bool(verdict.holds[at]), bool(verdict.fails[at])) == (expected is True, expected is False)


def test_what_is_not_known_is_not_safe():
    verdict = evaluate(parse_expression("not punsafe >= 0.5"), {"punsafe": np.array([0.1, 0.9, np.nan])}.__getitem__)
    assert verdict.holds.tolist() == [True, False, False]
    assert verdict.fails.tolist() == [False, True, False]
