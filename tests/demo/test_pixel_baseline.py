"""The pixel baseline: its pure parts against worked examples and a slow loop, and the figures of the embedded data."""

import numpy as np
import pytest

from clipkit.demo.pixel_baseline import accuracy, chance, figures, nearest_class_distances


def test_distances_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    test, train = rng.random((7, 12), np.float32), rng.random((20, 12), np.float32)
    labels = rng.integers(0, 4, 20)
    found = nearest_class_distances(test, train, labels, classes=5)
    for row, picture in enumerate(test):
        for label in range(4):
            expected = min(((picture - other) ** 2).sum() for other in train[labels == label])
            assert found[row, label] == pytest.approx(expected, abs=1e-5)
    assert np.isinf(found[:, 4]).all()


def test_accuracy_counts_the_right_class_among_the_k_nearest():
    distances = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]], np.float32)
    labels = np.array([0, 1, 2])
    assert [accuracy(distances, labels, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_tied_classes_count_in_expectation(k):
    assert accuracy(np.zeros((1, 4), np.float32), np.array([2]), k) == pytest.approx(k / 4)


def test_chance_is_one_of_all_and_never_above_one():
    assert chance(20) == {"acc1": 0.05, "acc5": 0.25}
    assert chance(3)["acc5"] == 1.0


def test_figures_of_the_held_out_style():
    rows = figures()
    assert rows["style_transfer"]["pixel_1nn"] == pytest.approx({"acc1": 0.306, "acc5": 0.478}, abs=0.01)
    assert rows["unseen"]["pixel_1nn"] == pytest.approx({"acc1": 0.080, "acc5": 0.268}, abs=0.02)
    assert rows["subgroup"]["pixel_1nn"] == pytest.approx({"acc1": 0.184}, abs=0.02)
    assert rows["style_transfer"]["chance"] == {"acc1": 1 / 1280, "acc5": 5 / 1280}
    assert set(rows["subgroup"]["chance"]) == {"acc1"}
