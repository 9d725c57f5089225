"""Selections: each kept sample exactly its copies an epoch, the same for every rank and worker; nothing else is read."""

import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit.callbacks.account import describe
from clipkit.data import selection
from clipkit.data.augment import Augment
from clipkit.data.catalogue import open_catalogue
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.index import build_index
from clipkit.data.selection import choose
from clipkit.data.source import Repeat, Source
from clipkit.data.tar import ShardError
from clipkit.data.transforms import Preprocess

from .conftest import image_bytes, pair, tokenize, write_tar

COUNTS = [7, 0, 12, 1, 25, 16]  # 0: a shard of which the filters keep nothing
FILTERS = {
    None: lambda held: True,
    "score >= 0.3": lambda held: "score" in held and held["score"] >= 0.3,
    "score > 0.2 and not (group == 2 or side < 20)": lambda held: held.get("score", 0) > 0.2 and held["group"] != 2,
}
SCORE = "score >= 0.3"
REPEATS = [
    None,
    Repeat(by="group", threshold=0.5, power=1.0),
    Repeat(column="weight"),
    Repeat(by="group", column="weight"),
]


def meta(number):
    found = {"score": number % 10 / 10, "group": number % 7 % 3, "weight": [0, 0.5, 1, 2.25][number % 4]}
    if number % 11 == 0:
        del found["score"]
    return found


def members(number):
    image = image_bytes(number // 2 if number % 5 == 1 else number)  # every tenth is the picture of another
    return {"jpg": image, "txt": f"caption {number}".encode(), "json": json.dumps(meta(number)).encode()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, number, paths = tmp_path_factory.mktemp("selected"), 0, []
    for shard, count in enumerate(COUNTS):
        files = []
        for _ in range(count or 3):
            held = members(number) | ({} if count else {"json": b'{"score": -1, "group": 2, "weight": 0}'})
            files += [(f"{number:03d}.{extension}", data) for extension, data in held.items()]
            number += 1
        paths.append(str(write_tar(folder / f"{shard}.tar", files)))
    listed = folder / "listed.txt"
    listed.write_text("".join(f"{number:03d}\n" for number in range(0, 70, 3)))
    return tuple(paths), str(listed)


def expected(source):
    """Copies of every sample by key, by a slow loop over the shards' own bytes (fractions still to be rounded)."""
    factors, seen = {}, set()
    listed = None if source.skip_keys is None else set(Path(source.skip_keys).read_text().split())
    for path in source.shards:
        index, data = build_index(path), Path(path).read_bytes()

        def member(name, at, index=index, data=data):
            start, size = (int(column[at]) for column in index.fields[name])
            return data[start : start + size]

        for at in range(len(index)):
            key, held, image = index.name(at), json.loads(member("json", at)), member("jpg", at)
            if not FILTERS[source.filter](held):
                continue
            if (listed and key in listed) or (source.duplicates == "drop" and image in seen):
                continue
            seen.add(image)
            factors[key] = held
    groups = Counter(held["group"] for held in factors.values())
    repeat = source.repeat or Repeat()
    for key, held in factors.items():
        share = groups[held["group"]] / len(factors)
        rare = max(1.0, (repeat.threshold / share) ** repeat.power) if repeat.by else 1.0
        factors[key] = rare * (held["weight"] if repeat.column else 1.0)
    return factors


def module(sources, batch_size=4, batches=1, **options):
    return ShardDataModule(
        train=sources,
        batch_size=batch_size,
        length=batch_size * batches,
        seed=3,
        tokenize=tokenize,
        augment=Augment((8, 8)),
        preprocess=Preprocess((8, 8)),
        **({"ranks": (0, 1)} | options),
    )


def keys(data):
    found = {}
    for batch in data.train_dataloader():
        data.advance(batch)
        for place, key in enumerate(batch["key"]):
            assert batch["text"][place, 0] == int(key)
            found[batch["position"] + data.rank + place * data.world] = key
    return found


def sources_of(shards, listed):
    return st.builds(
        Source,
        st.just("s"),
        st.just(shards),
        filter=st.sampled_from(list(FILTERS)),
        skip_keys=st.sampled_from([None, listed]),
        duplicates=st.sampled_from(["keep", "drop"]),
        repeat=st.sampled_from(REPEATS),
    )


@given(st.data())
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_each_kept_sample_comes_exactly_its_copies_whatever_the_ranks(shards, tmp_path_factory, data):
    source = data.draw(sources_of(*shards))
    world = data.draw(st.sampled_from([2, 3]))
    cache = data.draw(st.sampled_from([None, tmp_path_factory.getbasetemp() / "cache"]))
    epoch = module([source], cache=cache).plan.sources[0].planned
    whole, *parts = (
        module([source], 6, -(-2 * epoch // 6), ranks=ranks, cache=cache)
        for ranks in [(0, 1), *((rank, world) for rank in range(world))]
    )
    seen = keys(whole)
    assert {position: key for part in parts for position, key in keys(part).items()} == seen
    factors = expected(source)
    planned = whole.plan.sources[0].present
    for number in range(2):
        copies = Counter(seen[position] for position in range(number * epoch, (number + 1) * epoch))
        missed = Counter({key: int(factor) for key, factor in factors.items()}) - copies
        assert sum(missed.values()) <= planned - epoch
        assert all(key in factors and count <= np.ceil(factors[key] - 1e-9) for key, count in copies.items())
    assert abs(planned - sum(factors.values())) <= len(COUNTS)
    for line in whole.report()["s"]:
        assert line.present + line.repeated == line.filtered + line.remainder + line.planned
        assert line.present == sum(count or 3 for count in COUNTS)
        assert sum(line.filtered_by.values()) == line.filtered


@pytest.mark.parametrize("workers", [0, 2])
def test_no_byte_of_a_filtered_sample_is_read(shards, tmp_path, workers):
    paths = []
    for path in shards[0]:
        paths.append(str(tmp_path / os.path.basename(path)))
        Path(paths[-1]).write_bytes(Path(path).read_bytes())
    source = Source("s", tuple(paths), filter=SCORE, skip_keys=shards[1])
    sound = keys(module([source], 6, 20, cache=tmp_path / "cache"))
    kept = set(expected(source))
    assert set(sound.values()) <= kept
    for path in paths:  # in place and at the same time of change: whatever reads one of them fails
        index, status = build_index(path), os.stat(path)
        data = bytearray(Path(path).read_bytes())
        for at in range(len(index)):
            if index.name(at) not in kept:
                start, size = int(index.offset[at]), int(index.length[at])
                data[start : start + size] = b"\xff" * size
        Path(path).write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = module([source], 6, 20, cache=tmp_path / "cache", workers=workers)
    assert keys(found) == sound
    assert not any(line.bad for line in found.report()["s"])


def test_a_second_start_asks_the_cache_alone(shards, tmp_path, monkeypatch):
    source = Source("s", shards[0], filter=SCORE, repeat=REPEATS[3])
    first = open_catalogue(source, tmp_path)
    monkeypatch.setattr(selection, "_Selector", None)
    again = open_catalogue(source, tmp_path)
    assert again.chosen.fingerprint == first.chosen.fingerprint
    assert np.array_equal(again.chosen.samples, first.chosen.samples)
    assert (again.planned == first.planned).all()
    file = again.chosen.file
    file.write_bytes(file.read_bytes()[:-4])
    monkeypatch.undo()
    assert open_catalogue(source, tmp_path).chosen.fingerprint == first.chosen.fingerprint


def test_of_several_ranks_one_chooses(shards, tmp_path, monkeypatch):
    made = []
    selector = selection._Selector
    monkeypatch.setattr(selection, "_Selector", lambda *given: made.append(1) or time.sleep(0.2) or selector(*given))
    source = Source("s", shards[0], filter=SCORE)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_catalogue(source, tmp_path).chosen.fingerprint, range(4)))
    assert len(set(found)) == len(made) == 1


def test_a_list_that_is_gone_costs_a_run_that_began_with_it_nothing(shards, tmp_path):
    listed = tmp_path / "listed.txt"
    listed.write_bytes(Path(shards[1]).read_bytes())
    data = module([Source("s", shards[0], keys=str(listed))], cache=tmp_path)
    state = data.state_dict()
    listed.unlink()  # of gigabytes perhaps: no checkpoint reads it again
    assert data.state_dict() == state


def test_another_selection_is_another_plan_and_refused_by_name(shards, tmp_path):
    source = Source("s", shards[0], filter="score > 0.1")
    data = module([source], cache=tmp_path)
    state = json.loads(json.dumps(data.state_dict()))
    module([source], cache=tmp_path).load_state_dict(state)
    for change, says in [
        ({"filter": "score > 0.2"}, r"data.sources.s.selection.rule.filter was 'score > 0.1' and is 'score > 0.2'"),
        ({"filter": None}, "data.sources.s.selection was .* and is None"),
        ({"captions": "first"}, "data.sources.s.captions was 'random' and is 'first'"),
        ({"skip_keys": shards[1]}, "data.sources.s.selection.rule.skip_keys was None"),
        ({"repeat": Repeat(column="weight")}, "data.sources.s.selection.rule.repeat was None"),
    ]:
        other = module([Source(**(vars(source) | change))], cache=tmp_path)
        with pytest.raises(ValueError, match=says):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"filter": "score > 5"}, r"of 64 samples none is left, by cause \d+ missing, \d+ filter .*Loosen.*score > 5"),
        (
            {"filter": "scor > 0.1"},
            r"no.* column 'scor'; did you mean 'score'\? Known are width, .*, group, weight, score;",
        ),
        ({"filter": "punsafe > 0.1"}, "a column 'punsafe'. Known are"),
        ({"repeat": Repeat(by="class")}, "a column 'class'"),
        ({"duplicates": "drop", "fields": {"text": ("txt",)}}, "compares images, and its fields name none"),
        ({"repeat": Repeat(by="group", threshold=1.0, power=1.0, column="weight")}, None),
        ({"repeat": Repeat(column="height")}, None),
        ({"keys": "/nowhere/list.txt"}, "there is no such list"),
        ({"shards": ("s3://bucket/a.tar",), "filter": "score > 1"}, "need the index of every shard.*s3://bucket/a.tar"),
    ],
)
def test_what_cannot_be_selected_is_said(shards, options, says):
    source = Source(**({"name": "s", "shards": shards[0]} | options))
    count = np.array([count or 3 for count in COUNTS])
    marks = np.array([b"x"] * len(COUNTS))
    if says is None:
        assert len(choose(source, count, marks, None).samples)
        return
    with pytest.raises(ValueError, match=f"(?s){says}"):
        choose(source, count, marks, None)


def test_a_shard_that_is_not_what_its_folder_lists_is_refused(shards):
    counts, marks = np.array([count or 3 for count in COUNTS]), np.array([b"x"] * len(COUNTS))
    counts[3] += 1
    for options in ({"filter": SCORE}, {"skip_keys": shards[1]}):
        with pytest.raises(ShardError, match=r"3.tar: 1 samples, 2 were counted"):
            choose(Source("s", shards[0], **options), counts, marks, None)


def test_a_weight_that_would_fill_the_disk_is_refused(tmp_path):
    files = [("a.jpg", b"x"), ("a.json", b'{"w": 1e9}'), ("b.json", b'{"w": 1}')]
    source = Source("s", (str(write_tar(tmp_path / "s.tar", files)),), repeat=Repeat(column="w"))
    with pytest.raises(ValueError, match=r"sample 'a' of .*s.tar would come 1e\+09 times an epoch; 0 to 1,000"):
        open_catalogue(source, tmp_path)


def test_uids_and_labels(tmp_path):
    files = []
    for number in range(12):
        held = {"uid": f"{number:032x}"} if number else {}
        files += [(f"{number}.{name}", data) for name, data in pair(number).items()]
        files += [
            (f"{number}.json", json.dumps(held).encode()),
            (f"{number}.cls", b"rare" if number == 5 else b"often"),
        ]
    shards = (str(write_tar(tmp_path / "s.tar", files)),)
    np.save(tmp_path / "uids.npy", np.array([(0, 5), (0, 7), (1, 3)], "u8,u8"))
    uids = str(tmp_path / "uids.npy")
    kept = open_catalogue(Source("s", shards, keys=uids), None).chosen
    assert kept.samples.tolist() == [5, 7]
    assert kept.filtered == {"missing": 1, "keys": 9}
    assert open_catalogue(Source("s", shards, skip_keys=uids), None).chosen.samples.tolist() == [
        1,
        2,
        3,
        4,
        6,
        8,
        9,
        10,
        11,
    ]
    fields = {"image": ("jpg",), "text": ("txt",), "label": ("cls",)}
    repeat = Repeat(by="label", threshold=0.5, power=1.0)
    found = open_catalogue(Source("s", shards, fields=fields, repeat=repeat), None).chosen
    assert np.bincount(found.samples).tolist() == [1] * 5 + [6] + [1] * 6
    assert found.repeated == 5


def test_validation_is_filtered_too_and_the_first_caption_is_taken(tmp_path, shards):
    several = []
    for number in range(16):
        held = {"captions": [f"first {number}", f"another one {number}"], "n": number}
        several += [(f"{number:02d}.jpg", image_bytes(number)), (f"{number:02d}.json", json.dumps(held).encode())]
    path = str(write_tar(tmp_path / "s.tar", several))
    fields = {"image": ("jpg",), "text": ("json.captions",)}
    source = Source("s", (path,), fields=fields, captions="first", filter="n != 3")
    data = module([source], 5, 9, val=[source], cache=tmp_path)
    found = list(data.val_batches())
    assert [key for batch in found for key in batch["key"]] == [f"{n:02d}" for n in range(16) if n != 3]
    trained = list(data.train_dataloader())
    assert all(int(length) <= len("first 15") for batch in trained for length in batch["text"][:, 1])


def test_the_account_in_a_line(shards, tmp_path):
    data = module([Source("s", shards[0], filter=SCORE, repeat=Repeat(column="weight"))], 6, 8, cache=tmp_path)
    keys(data)
    line = describe(data.report()["s"])
    assert "64 present + " in line
    assert "repeated = " in line
    assert "missing, " in line
    assert "weight)" in line
