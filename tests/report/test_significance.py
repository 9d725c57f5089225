"""Resampling against slow loops and exact formulas."""

import pytest
import torch
from scipy.stats import binomtest

from clipkit.report.significance import paired


def test_p_is_that_of_the_exact_test_of_discordant_pairs():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(200, generator=generator) < 0.5
    second = first ^ (torch.rand(200, generator=generator) < 0.2)
    second[:12] = True
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    exact = binomtest(gained, gained + lost).pvalue  # McNemar's exact test
    assert paired(first, second).p == pytest.approx(exact, abs=0.01)
    assert paired(first, first).p == 1.0


def test_captions_of_one_image_are_one_observation():
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(30, generator=generator) < 0.65
    once = paired(torch.zeros(30), image.double() - 0.5)
    owner = torch.arange(30).repeat_interleave(5)
    five = paired(torch.zeros(150), (image.double() - 0.5).repeat_interleave(5), clusters=owner)
    assert five.units == once.units == 30
    assert five.difference == pytest.approx(once.difference)
    assert five.p == pytest.approx(once.p, abs=0.02)
    assert paired(torch.zeros(150), (image.double() - 0.5).repeat_interleave(5)).p < 0.5 * five.p  # as if independent


def test_strata_weigh_the_same():
    strata = torch.tensor([0] * 9 + [1])
    first, second = torch.zeros(10), torch.tensor([0.0] * 9 + [1.0])
    assert paired(first, second, strata=strata).difference == pytest.approx(0.5)
    assert paired(first, second).difference == pytest.approx(0.1)


def test_outcomes_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        paired(torch.zeros(3), torch.zeros(4))
