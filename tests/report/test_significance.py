"""Resampling against slow loops and exact formulas."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from clipkit.report.significance import interval, paired


def test_p_is_that_of_the_exact_test_of_discordant_pairs():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(200, generator=generator) < 0.5
    second = first ^ (torch.rand(200, generator=generator) < 0.2)
    second[:12] = True
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    exact = binomtest(gained, gained + lost).pvalue  # McNemar's exact test
    assert paired(first, second).p == pytest.approx(exact, abs=0.01)
    assert paired(first, first).p == 1.0


def test_intervals_are_those_of_a_loop_over_units():
    generator = np.random.default_rng(0)
    owner = torch.arange(60).repeat_interleave(5)
    values = torch.from_numpy(np.repeat(generator.random(60), 5) > 0.4)  # captions of one image agree
    groups = values.double().reshape(60, 5)
    slow = [float(groups[generator.integers(60, size=60)].mean()) for _ in range(4000)]
    assert interval(values, owner) == pytest.approx(tuple(np.percentile(slow, (2.5, 97.5))), abs=0.02)
    low, high = interval(values)  # as if captions were independent: too narrow
    assert high - low < 0.6 * (np.percentile(slow, 97.5) - np.percentile(slow, 2.5))


def test_outcomes_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        paired(torch.zeros(3), torch.zeros(4))
