"""Logistic regression and the search for its weight decay, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from clipkit.evaluation.logistic import Problem
from clipkit.evaluation.probe_splits import few_shot, folds_of, hold_out
from clipkit.evaluation.weight_decay import GRID, NO_CHOICE, choose


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.from_numpy(data.data) / 16, torch.from_numpy(data.target).long()


def scikit(x, y, weight_decay):
    model = LogisticRegression(C=1 / weight_decay, tol=1e-10, max_iter=100_000)
    return model.fit(x.numpy(), y.numpy())


def objective(x, y, weight, bias, weight_decay):
    return float(cross_entropy(x @ weight + bias, y, reduction="sum") + weight_decay / 2 * weight.square().sum())


@pytest.mark.parametrize("weight_decay", [100.0, 1.0])
def test_the_optimum_is_scikit_learns(digits, weight_decay):
    x, y = digits[0][:400], digits[1][:400]  # some of the 64 pixels are the same everywhere: rank below width
    ours = Problem(x, y, 10).fit(weight_decay, tolerance=2e-8)
    theirs = scikit(x, y, weight_decay)
    assert ours.converged
    np.testing.assert_allclose(ours.weight.T.numpy(), theirs.coef_, atol=2e-5)
    bias = theirs.intercept_ - theirs.intercept_.mean()
    np.testing.assert_allclose((ours.bias - ours.bias.mean()).numpy(), bias, atol=5e-5)
    weight = torch.from_numpy(theirs.coef_.T.copy())
    mine = objective(x, y, ours.weight, ours.bias, weight_decay)
    assert mine <= objective(x, y, weight, torch.from_numpy(theirs.intercept_), weight_decay) * (1 + 1e-10)


def test_a_weak_decay_ends_no_higher_than_scikit_learn(digits):
    x, y = digits[0][:400], digits[1][:400]
    ours, theirs = Problem(x, y, 10).fit(1e-2, tolerance=1e-6), scikit(x, y, 1e-2)
    weight, bias = torch.from_numpy(theirs.coef_.T.copy()), torch.from_numpy(theirs.intercept_)
    assert objective(x, y, ours.weight, ours.bias, 1e-2) <= objective(x, y, weight, bias, 1e-2) * (1 + 1e-6)


def test_fewer_rows_than_columns(digits):
    x, y = digits[0][:30], digits[1][:30]
    ours = Problem(x, y, 10).fit(0.1, tolerance=2e-8)
    np.testing.assert_allclose(ours.weight.T.numpy(), scikit(x, y, 0.1).coef_, atol=2e-5)


def test_a_warm_start_ends_at_the_same_optimum_sooner(digits):
    x, y = digits[0][:400], digits[1][:400]
    problem = Problem(x, y, 10)
    cold = problem.fit(1.0, tolerance=1e-6)
    warm = problem.fit(1.0, start=problem.fit(1.3), tolerance=1e-6)
    torch.testing.assert_close(warm.weight, cold.weight, atol=1e-3, rtol=0)
    assert warm.steps < cold.steps < 100


def test_single_precision_comes_near(digits):
    x, y = digits[0][:400], digits[1][:400]
    wide, narrow = Problem(x, y, 10).fit(1.0), Problem(x.float(), y, 10).fit(1.0)
    assert narrow.weight.dtype == torch.float32
    torch.testing.assert_close(narrow.weight.double(), wide.weight, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("spoil", "message"), [("nan", "row 3 and 0 others hold NaN"), ("gap", "class 9 has no")])
def test_bad_rows_are_refused(digits, spoil, message):
    x, y = digits[0][:50].clone(), digits[1][:50]
    if spoil == "nan":
        x[3, 5] = float("nan")
    else:
        x, y = x[y < 9], y[y < 9]
    with pytest.raises(ValueError, match=message):
        Problem(x, y, 10)


def test_the_search_finds_what_a_full_sweep_finds(digits):
    x, y = digits[0][:300], digits[1][:300]
    fold = hold_out(y, 0.3, seed=1)
    chosen, tried, start = choose(x, y, 10, [fold])
    assert [one.weight_decay for one in tried] == sorted((one.weight_decay for one in tried), reverse=True)
    assert {GRID[96], GRID[0]} <= {one.weight_decay for one in tried}
    assert len(tried) <= 15
    fit, look = fold
    accuracy = {
        step: scikit(x[fit], y[fit], GRID[step]).score(x[look].numpy(), y[look].numpy()) for step in range(24, 88, 8)
    }
    best = max(one.accuracy for one in tried)
    assert best >= max(accuracy.values())
    assert next(one for one in tried if one.weight_decay == chosen).accuracy == best
    assert start is not None
    assert start.weight_decay == chosen


def test_without_folds_there_is_no_choice(digits):
    assert choose(*digits, 10, []) == (NO_CHOICE, [], None)


def test_splits_are_of_every_class_and_share_no_row():
    labels = torch.tensor([0] * 10 + [1] * 5 + [4])
    first, second = hold_out(labels, 0.2, seed=0)
    assert sorted(torch.cat([first, second]).tolist()) == list(range(16))
    assert torch.bincount(labels[second], minlength=5).tolist() == [2, 1, 0, 0, 0]
    assert not torch.equal(second, hold_out(labels, 0.2, seed=1)[1])
    few = few_shot(labels[:15], 4, 0, list("abcde"))
    assert torch.bincount(labels[few]).tolist() == [4, 4]
    assert set(few_shot(labels[:15], 2, 0, list("abcde")).tolist()) < set(few.tolist())
    with pytest.raises(ValueError, match="4 shots: the class 'e' has 1 training images"):
        few_shot(labels, 4, 0, list("abcde"))


def test_folds_look_at_each_row_once():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    folds = folds_of(labels, seed=0)
    assert len(folds) == 2, "the smallest class has two rows"
    assert sorted(torch.cat([look for _, look in folds]).tolist()) == list(range(8))
    for fit, look in folds:
        assert not set(fit.tolist()) & set(look.tolist())
        assert set(labels[fit].tolist()) == {0, 1, 2}
    assert folds_of(torch.tensor([0, 1, 1]), seed=0) == []


@pytest.mark.gpu
def test_a_gpu_finds_the_same(digits):
    x, y = digits[0][:400], digits[1][:400]
    here = Problem(x, y, 10).fit(1.0, tolerance=2e-8)
    there = Problem(x.cuda(), y.cuda(), 10).fit(1.0, tolerance=2e-8)
    torch.testing.assert_close(there.weight.cpu(), here.weight, atol=1e-5, rtol=0)
