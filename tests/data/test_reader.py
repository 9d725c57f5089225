"""Members by offset, captions, labels, and a data set in another process."""

import os
import pickle
import time

import numpy as np
import pytest
import torch

from clipkit.data import reader as module
from clipkit.data.augment import Augment
from clipkit.data.catalogue import open_catalogue
from clipkit.data.dataset import Request, ShardDataset
from clipkit.data.images import BadSample
from clipkit.data.index import sidecar_path
from clipkit.data.indexing import write_folder_index
from clipkit.data.plan import Plan
from clipkit.data.reader import ShardReader
from clipkit.data.source import Source, parse_place
from clipkit.data.stages import Stage
from clipkit.data.tar import ShardError
from clipkit.data.values import caption, hash64, label

from .conftest import tokenize, write_tar


def reader_of(path, *extensions):
    return ShardReader([open_catalogue(Source("s", (str(path),)), None)], [frozenset(extensions)], None)


def test_members_near_and_far(tmp_path):
    files = [("a.txt", b"one"), ("a.bin", bytes(200_000)), ("a.jpg", b"two"), ("b.jpg", b""), ("b.txt", b"3" * 999)]
    reader = reader_of(write_tar(tmp_path / "s.tar", files), "txt", "jpg", "png")
    assert reader.members(0, 0, 0, 1 << 20) == {"txt": b"one", "jpg": b"two"}
    assert reader.members(0, 0, 1, 1 << 20) == {"jpg": b"", "txt": b"3" * 999}
    assert reader.key(0, 0, 1) == "b"
    with pytest.raises(BadSample, match="too_large"):
        reader.members(0, 0, 1, 998)


@pytest.mark.parametrize(
    "limit", [{"MOST_OPEN": 3}, {"MOST_HELD": 3 * (1 + 8 + 4)}]
)  # a key of a byte, a place, a check
def test_open_files_are_bounded(tmp_path, monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(module, name, value)
    paths = [str(write_tar(tmp_path / f"{number}.tar", [("a.txt", b"%d" % number)])) for number in range(10)]
    reader = ShardReader([open_catalogue(Source("s", tuple(paths)), None)], [frozenset({"txt"})], None)
    before = len(os.listdir("/proc/self/fd"))
    for number in [*range(10), *range(10)]:
        assert reader.members(0, number, 0, 99) == {"txt": b"%d" % number}
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_stumbling_disk_is_tried_again_and_never_substituted(tmp_path, monkeypatch):
    reader = reader_of(write_tar(tmp_path / "s.tar", [("a.txt", b"one")]), "txt")
    reader.key(0, 0, 0)
    real, calls = os.pread, []

    def stumble(fd, size, offset):
        calls.append(offset)
        if len(calls) < 3:
            raise OSError(5, "Input/output error")
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", stumble)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert reader.members(0, 0, 0, 99) == {"txt": b"one"}
    monkeypatch.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(ShardError, match="4 tries"):
        reader.members(0, 0, 0, 99)


def test_index_json_spares_the_sidecars(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"one"), ("b.txt", b"two")])
    write_folder_index(tmp_path)
    expected = open_catalogue(Source("s", (str(path),)), None)
    monkeypatch.setattr("clipkit.data.catalogue.load_index", lambda *_: pytest.fail("opened a sidecar"))
    assert open_catalogue(Source("s", (str(path),)), None).fingerprint == expected.fingerprint
    assert expected.counts.tolist() == [2]
    monkeypatch.undo()
    write_tar(path, [("a.txt", b"one")] + [(f"{number}.txt", b"more") for number in range(30)])  # another size
    assert open_catalogue(Source("s", (str(path),)), None).counts.tolist() == [31]
    for damaged in ("{", "[]", '{"version": 1, "shards": [{"name": "s.tar"}]}', '{"version": 9, "shards": []}'):
        (tmp_path / "index.json").write_text(damaged)
        assert open_catalogue(Source("s", (str(path),)), None).counts.tolist() == [31]


def test_a_wrong_count_in_index_json_is_noticed(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"one"), ("b.txt", b"two")])
    listed = write_folder_index(tmp_path)
    listed.write_text(listed.read_text().replace('"count": 2', '"count": 3'))
    with pytest.raises(ShardError, match="not what was counted"):
        reader_of(path, "txt").members(0, 0, 2, 99)


def test_a_shard_cut_after_indexing_is_an_error(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"one" * 500), ("b.txt", b"two")])
    reader = reader_of(path, "txt")
    reader.key(0, 0, 0)
    os.truncate(path, 1000)
    with pytest.raises(ShardError, match="ends at byte 1000"):
        reader.members(0, 0, 0, 9999)


@pytest.mark.parametrize(
    ("data", "place", "cause"),
    [
        (b" \n", "txt", "no_caption"),
        (b"\xff", "txt", "not_utf8"),
        (b"{", "json.c", "not_json"),
        (b"[" * 100_000, "json.c", "not_json"),
        (b"[1]", "json.c", "no_caption"),
        (b'{"d": 1}', "json.c", "no_caption"),
        (b'{"c": 3}', "json.c", "no_caption"),
        (b'{"c": ["", 3]}', "json.c", "no_caption"),
        (b"x" * (1 << 21), "txt", "too_large"),
    ],
)
def test_bad_captions(data, place, cause):
    places = [parse_place(place)]
    with pytest.raises(BadSample) as caught:
        caption({places[0].extension: data}, places, 0.0)
    assert caught.value.cause == cause


def test_captions_and_labels():
    text, listed = [parse_place("txt")], [parse_place("json.c"), parse_place("txt")]
    assert caption({"txt": " ein Hund, käse\n".encode()}, text, 0.99) == "ein Hund, käse"
    members = {"json": b'{"c": ["a", "b", "", "c"], "n": 7}', "txt": b"other"}
    assert [caption(members, listed, draw) for draw in (0.0, 0.34, 0.99)] == ["a", "b", "c"]
    assert caption({"txt": b"other"}, listed, 0.5) == "other"
    one = [parse_place("json.c")]
    for missing in (b'{"c": NaN}', b'{"c": "nan"}', b'{"c": [NaN, " NAN "]}'):
        with pytest.raises(BadSample, match="nan_caption"):
            caption({"json": missing}, one, 0.5)
    assert caption({"json": b'{"c": ["nan", "my nan", NaN]}'}, one, 0.99) == "my nan"
    for word in ("None", "NULL", "N/A"):  # may be meant
        assert caption({"txt": word.encode()}, [parse_place("txt")], 0.5) == word
    assert label(members, [parse_place("json.n")]) == label({"cls": b" 7\n"}, [parse_place("cls")])
    assert hash64(b"a") == hash64(b"a") != hash64(b"b")
    for missing in ({}, {"cls": b" "}):
        with pytest.raises(BadSample, match="no_label"):
            label(missing, [parse_place("cls")])


def test_a_copy_of_the_set_reads_the_same(make_shards):
    source = Source("pairs", make_shards([20, 20]))
    catalogue = open_catalogue(source, None)
    plan = Plan([catalogue.counts], [1.0], seed=0)
    dataset = ShardDataset(
        sources=[source],
        catalogues=[catalogue],
        order=plan,
        seed=0,
        stages=[Stage({"image": Augment((16, 16))}, tokenize)],
        cache=None,
    )
    request = Request(0, 8, plan.rows(np.arange(8)))
    expected = dataset.__getitems__(request)
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    found = copy.__getitems__(request)
    assert found["key"] == expected["key"]
    assert torch.equal(found["image"], expected["image"])
    assert sidecar_path(source.shards[0]).exists()
