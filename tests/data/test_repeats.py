"""Repeat factors and their whole copies."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data.repeats import class_factors, copies


def test_factors_are_those_of_lvis():
    assert class_factors(np.array([90, 9, 1]), 0.04, 0.5).tolist() == [1.0, 1.0, 2.0]
    assert class_factors(np.array([90, 9, 1]), 0.04, 1.0).tolist() == [1.0, 1.0, 4.0]
    assert class_factors(np.array([90, 9, 1]), 0.04, 0.0).tolist() == [1.0, 1.0, 1.0]


@given(st.lists(st.sampled_from([0, 0.25, 0.3, 1, 1.5, 1 / 3 + 1, 7.1]), max_size=60), st.integers(0, 2**16 - 1))
@settings(max_examples=100, deadline=None)
def test_copies_add_up_and_none_is_off_by_one(factors, number):
    factors = np.array(factors, float)
    found = copies(factors, (number + 0.5) / 2**16)
    assert ((found == np.floor(factors)) | (found == np.floor(factors) + 1)).all()
    assert (found[factors % 1 == 0] == factors[factors % 1 == 0]).all()
    assert abs(found.sum() - factors.sum()) < 1


def test_small_shards_do_not_all_round_the_same_way():
    total = sum(copies(np.array([1.25]), (number + 0.5) / 100).sum() for number in range(100))
    assert total == 125
