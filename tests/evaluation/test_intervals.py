"""Bootstrap intervals against the textbook and a slow loop."""

import numpy as np
import pytest
import torch

from clipkit.evaluation.intervals import bootstrap_interval


def test_a_share_has_the_binomials_interval():
    hits = torch.zeros(2000)
    hits[:600] = 1
    low, high = bootstrap_interval(hits, seed=0)
    deviation = (0.3 * 0.7 / 2000) ** 0.5
    assert low == pytest.approx(0.3 - 1.96 * deviation, abs=0.002)
    assert high == pytest.approx(0.3 + 1.96 * deviation, abs=0.002)
    assert bootstrap_interval(hits, seed=0) == [low, high]
    assert bootstrap_interval(hits, seed=1) != [low, high]


def slow(values, labels, draws, statistic):
    rng = np.random.default_rng(5)
    found = []
    for _ in range(draws):
        found.append(statistic(values, labels, rng))
    return np.quantile(found, [0.025, 0.975])


def by_cluster(values, labels, rng):
    chosen = rng.choice(np.unique(labels), len(np.unique(labels)))
    return np.concatenate([values[labels == c] for c in chosen]).mean()


def by_stratum(values, labels, rng):
    rows = rng.integers(0, len(values), len(values))
    return np.mean([values[rows][labels[rows] == c].mean() for c in np.unique(labels[rows])])


@pytest.mark.parametrize(("key", "statistic"), [("clusters", by_cluster), ("strata", by_stratum)])
def test_units_that_belong_together(key, statistic):
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    values = (rng.random(len(labels)) < rng.random(60)[labels]).astype(float)
    ours = bootstrap_interval(torch.tensor(values), seed=0, **{key: torch.tensor(labels)})
    assert ours == pytest.approx(slow(values, labels, 4000, statistic), abs=0.01)
    plain = bootstrap_interval(torch.tensor(values), seed=0)
    if key == "clusters":
        assert ours[1] - ours[0] > 1.2 * (plain[1] - plain[0])


def test_any_numbers_and_too_few():
    values = torch.linspace(0, 1, 500) ** 2
    low, high = bootstrap_interval(values, seed=0)
    assert low < float(values.mean()) < high
    assert bootstrap_interval(values[:1], seed=0) is None
    with pytest.raises(ValueError, match="clusters and strata together"):
        bootstrap_interval(values, seed=0, clusters=values.long(), strata=values.long())
