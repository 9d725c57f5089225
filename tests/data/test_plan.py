"""The plan's promises, as properties."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data.plan import BLOCK, Plan, shares

COUNTS = st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)


def triples(rows):
    return list(zip(rows.source.tolist(), rows.shard.tolist(), rows.sample.tolist(), strict=True))


def span(start, stop):
    return np.arange(start, stop)


@given(COUNTS, st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_each_sample_at_most_once_an_epoch(counts, seed):
    plan = Plan([counts], [1.0], seed)
    source = plan.sources[0]
    assert source.planned <= source.present == sum(counts)
    assert source.present - source.planned < source.lanes
    for epoch in range(3):
        rows = plan.rows(span(epoch * source.planned, (epoch + 1) * source.planned))
        assert len(set(triples(rows))) == source.planned
        assert (rows.epoch == epoch).all()
        assert (rows.sample < np.array(counts)[rows.shard]).all()
        assert (rows.sample >= 0).all()


@given(st.lists(COUNTS, min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_into_batches_and_ranks_gives_the_same_samples(counts, data):
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(counts), max_size=len(counts)))
    plan = Plan(counts, weights, seed=data.draw(st.integers(0, 9)))
    start, batch = data.draw(st.integers(0, 5000)), data.draw(st.integers(1, 300))
    whole = plan.rows(span(start, start + 3 * batch))
    for step in range(3):
        first = start + step * batch
        expected = whole.take(slice(step * batch, (step + 1) * batch))
        for world in range(1, 9):
            ranks = [plan.rows(span(first, first + batch)[rank::world]) for rank in range(world)]
            merged = sorted(row for rank in ranks for row in zip(*rank, strict=True))
            assert merged == sorted(zip(*expected, strict=True))


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=6).filter(lambda w: min(w) / sum(w) > 2 / BLOCK),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_mixing_is_exact_in_every_block(weights, block):
    plan = Plan([[50, 30]] * len(weights), weights, seed=1)
    source, ordinal = plan.ordinals(span(block * BLOCK, (block + 1) * BLOCK))
    counts = np.bincount(source, minlength=len(weights))
    quotas = BLOCK * np.array(weights) / sum(weights)
    assert counts.sum() == BLOCK
    assert (np.abs(counts - quotas) < 1).all()
    assert tuple(counts) == plan.shares
    for number, count in enumerate(plan.shares):  # no sample of a source is skipped or comes twice
        assert np.array_equal(ordinal[source == number], block * count + np.arange(count))


@given(st.integers(0, 5000))
@settings(max_examples=40, deadline=None)
def test_consumed_counts_what_lies_before(position):
    plan = Plan([[10], [200, 3], [7]], [1, 2, 0.5], seed=4)
    source, _ = plan.ordinals(span(0, position))
    assert plan.consumed(position) == np.bincount(source, minlength=3).tolist()


def test_ids_are_stable_and_tell_samples_apart():
    plan = Plan([[3, 5], [4]], [1, 1], seed=0)
    rows = plan.rows(span(0, 4000))
    seen = {}
    for name, id_ in zip(triples(rows), rows.id.tolist(), strict=True):
        assert seen.setdefault(name, id_) == id_
    assert sorted(seen.values()) == list(range(12))
    assert seen[(0, 0, 0)] == 0
    assert seen[(0, 1, 0)] == 3
    assert seen[(1, 0, 3)] == 11


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65, 127, 128, 4096, 4097])
def test_any_size_works(samples):
    plan = Plan([[samples]], [1.0], seed=2)
    source = plan.sources[0]
    assert source.lanes == max(1, min(64, samples // 64))
    rows = plan.rows(span(0, 2 * source.planned))
    assert Counter(rows.epoch.tolist()) == {0: source.planned, 1: source.planned}
    assert len(set(rows.sample[: source.planned].tolist())) == source.planned


def test_the_remainder_differs_by_epoch():
    plan = Plan([[127]], [1.0], seed=0)  # one lane
    assert plan.sources[0].planned == 127
    plan = Plan([[100, 29]], [1.0], seed=0)  # two lanes: one sample of 129 stays out
    assert plan.sources[0].planned == 128
    missing = []
    for epoch in range(20):
        rows = plan.rows(span(epoch * 128, (epoch + 1) * 128))
        missing += set(range(129)) - set(rows.id.tolist())
    assert len(missing) == 20
    assert len(set(missing)) > 10


def test_epochs_seeds_and_sources_are_drawn_apart():
    plan = Plan([[500], [500]], [1, 1], seed=0)
    source, _ = plan.ordinals(span(0, 1000))
    rows = plan.rows(span(0, 1000))
    assert not np.array_equal(rows.sample[source == 0][:400], rows.sample[source == 1][:400])
    one = Plan([[500]], [1], seed=0)
    planned = one.sources[0].planned
    assert not np.array_equal(one.rows(span(0, 99)).sample, one.rows(span(planned, planned + 99)).sample)
    assert not np.array_equal(one.rows(span(0, 99)).sample, Plan([[500]], [1], seed=1).rows(span(0, 99)).sample)


def test_a_batch_mixes_many_shards():
    plan = Plan([[1000] * 200], [1.0], seed=0)
    assert len(np.unique(plan.rows(span(0, 1024)).shard)) >= 64


def test_windows_longer_than_one():
    plan = Plan([[64 * 10_000]], [1.0], seed=0)  # 64 lanes of 10,000: a window of 8,192 and one of 1,808
    lane = plan.rows(span(0, plan.epoch_samples)[5::64])
    assert len(set(lane.sample.tolist())) == 10_000
    start = lane.sample.min() if np.ptp(lane.sample) < 20_000 else lane.sample[lane.sample > 20_000].min()
    relative = (lane.sample - start) % 640_000
    assert relative[:8192].max() == 8191
    assert relative[8192:].min() == 8192


def test_a_cold_plan_and_a_copy_give_the_same():
    plan = Plan([[300, 20], [77]], [3, 1], seed=5)
    expected = plan.rows(span(12_345, 12_645))
    for other in (Plan([[300, 20], [77]], [3, 1], seed=5), pickle.loads(pickle.dumps(plan))):  # noqa: S301
        assert all(np.array_equal(*pair) for pair in zip(other.rows(span(12_345, 12_645)), expected, strict=True))


def test_the_order_is_fixed_for_ever():
    rows = Plan([[30, 40], [50]], [2, 1], seed=11).rows(span(2000, 2008))
    assert rows.id.tolist() == [30, 106, 103, 6, 73, 95, 43, 23]


@given(st.integers(2, 400), st.integers(1, 300), st.integers(0, 900), st.data())
@settings(max_examples=80, deadline=None)
def test_substitutes_are_of_no_sample_in_the_batch(samples, batch, step, data):
    plan = Plan([[samples], [37]], [2, 1], seed=3)
    start = step * batch
    position = data.draw(st.integers(start, start + batch - 1))
    bad, planned = plan.rows(np.array([position])), plan.rows(span(start, start + batch))
    tried = [plan.substitute(position, start, batch, attempt) for attempt in range(3)]
    again = [plan.substitute(position, start, batch, attempt) for attempt in range(3)]
    ids = [found.id.item() for found in tried if found is not None]
    assert ids == [found.id.item() for found in again if found is not None]
    assert len(set(ids)) == len(ids)
    assert tried[0] is not None
    assert bad.id.item() not in ids
    assert tried[0].source == bad.source
    assert tried[0].position == position
    size = plan.sources[int(bad.source[0])].planned
    if size > batch:  # there is a sample of its epoch that is not in the batch
        assert ids[0] not in planned.id.tolist()


def test_a_substitute_is_half_an_epoch_away():
    plan = Plan([[1000]], [1.0], seed=3)
    planned = plan.rows(span(0, plan.epoch_samples)).id.tolist()
    for position in (0, 17, plan.epoch_samples - 1):
        found = plan.substitute(position, position // 16 * 16, 16)
        assert planned.index(found.id.item()) == (position + plan.epoch_samples // 2) % plan.epoch_samples


def test_a_source_of_one_sample_has_no_substitute():
    assert Plan([[1]], [1.0], seed=0).substitute(0, 0, 4) is None


@pytest.mark.parametrize(
    ("weights", "says"), [([1, 0], "positive"), ([1, -2], "positive"), ([5000, 1], "never be seen")]
)
def test_weights_that_cannot_be(weights, says):
    with pytest.raises(ValueError, match=says):
        shares(weights)
    with pytest.raises(ValueError, match="negative"):
        Plan([[1]], [1.0], seed=-1)
