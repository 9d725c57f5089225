"""One promise, as a property: whatever the ranks, the workers, the interruptions and the bad samples, position p is the same sample
with the same pixels, every sample comes once an epoch, and every rank has equal batches."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit.data.account import merge
from clipkit.data.augment import Affine, Augment
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.source import Source
from clipkit.data.transforms import Preprocess

from .conftest import pair, tokenize, write_tar

AUGMENT = Augment((8, 8), scale=(0.3, 1.0), flip=0.5, grayscale=0.3, affine=Affine(degrees=20))
SHARDS = {"many": [5, 17, 1, 30, 9], "one": [65], "few": [11]}
WORLDS = (1, 2, 3, 4, 6, 8, 12)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Per name and whether a tenth of the samples is spoilt, the shards."""
    folder, made = tmp_path_factory.mktemp("exact"), {}
    for spoilt in (False, True):
        for name, counts in SHARDS.items():
            place, number = folder / f"{name}-{spoilt}", 0
            place.mkdir()
            for shard, count in enumerate(counts):
                files = []
                for _ in range(count):
                    members = pair(number) | ({"txt": b" "} if spoilt and number % 10 == 3 else {})
                    files += [(f"{name}{number:03d}.{extension}", data) for extension, data in members.items()]
                    number += 1
                write_tar(place / f"{shard}.tar", files)
            made[name, spoilt] = tuple(str(path) for path in sorted(place.glob("*.tar")))
    return made


def sources(tars, names, weights, spoilt):
    return [Source(name, tars[name, spoilt], weight=weight) for name, weight in zip(names, weights, strict=True)]


def module(train, batch_size, batches, *, rank=0, world=1, workers=0):
    return ShardDataModule(
        train=train,
        batch_size=batch_size,
        length=batch_size * batches,
        seed=7,
        tokenize=tokenize,
        augment=AUGMENT,
        preprocess=Preprocess((8, 8)),
        workers=workers,
        ranks=(rank, world),
    )


def stretch(train, batch_size, batches, state, stop, *, world=1, workers=0):
    """What every rank sees from a state to a number of batches, by position; and the state there."""
    seen, states = {}, []
    for rank in range(world):
        data = module(train, batch_size, batches, rank=rank, world=world, workers=workers)
        if state is not None:
            data.load_state_dict(json.loads(json.dumps(state)))
        iterator = iter(data.train_dataloader())
        while data.position < stop * batch_size:
            batch = next(iterator)
            data.advance(batch)
            assert len(batch["key"]) == len(batch["image"]) == batch_size // world
            for place, key in enumerate(batch["key"]):
                position = batch["position"] + rank + place * world
                assert position not in seen
                pixels, text = batch["image"][place].numpy().tobytes(), batch["text"][place].tolist()
                content = {name: int(values[place]) for name, values in batch["content"].items()}
                seen[position] = key, int(batch["id"][place]), pixels, text, content
        del iterator
        states.append(data.state_dict())
    before = {} if state is None else state["bad"]
    here = [_less(found["bad"], before) for found in states]
    return seen, {**states[0], "bad": merge([before, *here])}, data


def _less(counts, before):
    return {
        source: {
            epoch: {
                cause: number - before.get(source, {}).get(epoch, {}).get(cause, 0) for cause, number in causes.items()
            }
            for epoch, causes in epochs.items()
        }
        for source, epochs in counts.items()
    }


def once_an_epoch(plan, seen, bad_positions):
    rows = plan.rows(np.array(sorted(seen)))
    for source in range(len(plan.sources)):
        for epoch in set(rows.epoch[rows.source == source].tolist()):
            ids = rows.id[(rows.source == source) & (rows.epoch == epoch)].tolist()
            assert len(ids) == len(set(ids)) <= plan.sources[source].planned
    for position, id_ in zip(rows.position.tolist(), rows.id.tolist(), strict=True):
        assert (seen[position][1] == id_) != (position in bad_positions)


def holds(train, batch_size, cuts, worlds, workers):
    """The whole run at once against its stretches, each on ranks and workers of its own."""
    batches = cuts[-1]
    whole, end, data = stretch(train, batch_size, batches, None, batches)
    bad = {
        p for p, row in zip(whole, data.plan.rows(np.array(list(whole))).id.tolist(), strict=True) if whole[p][1] != row
    }
    once_an_epoch(data.plan, whole, bad)
    assert sorted(whole) == list(range(batches * batch_size))
    state, seen = None, {}
    for (_, stop), world, count in zip(pairwise([0, *cuts]), worlds, workers, strict=True):
        found, state, _ = stretch(train, batch_size, batches, state, stop, world=world, workers=count)
        seen |= found
    assert seen == whole
    assert state == end
    assert len(bad) == sum(
        number for epochs in end["bad"].values() for causes in epochs.values() for number in causes.values()
    )
    return bad


@given(st.data())
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_ranks_any_kill_any_bad_samples(tars, data):
    names = data.draw(st.lists(st.sampled_from(list(SHARDS)), min_size=1, max_size=3, unique=True))
    weights = [data.draw(st.sampled_from([0.5, 1, 3])) for _ in names]
    batch_size = data.draw(st.sampled_from([4, 8, 6]))
    batches = data.draw(st.integers(2, 16))
    cuts = sorted(set(data.draw(st.lists(st.integers(1, batches), max_size=2))) | {batches})
    possible = [world for world in WORLDS if batch_size % world == 0]
    worlds = [data.draw(st.sampled_from(possible)) for _ in cuts]
    spoilt = data.draw(st.booleans())
    holds(sources(tars, names, weights, spoilt), batch_size, cuts, worlds, [0] * len(cuts))


@pytest.mark.parametrize(
    ("names", "batch_size", "cuts", "worlds", "workers"),
    [
        (["one"], 24, [2, 5, 9], [8, 1, 3], [0, 2, 0]),  # one shard on eight ranks; 65 samples, over three epochs
        (["few"], 8, [1, 9], [8, 2], [1, 0]),  # fewer samples than a window and than a lane
        (["many", "one", "few"], 12, [3, 7, 12], [1, 4, 12], [2, 1, 0]),
    ],
)
def test_with_real_workers(tars, names, batch_size, cuts, worlds, workers):
    bad = holds(sources(tars, names, [2, 1, 1][: len(names)], True), batch_size, cuts, worlds, workers)
    assert bad
