"""Columns: what they say of a sample, and that they are read once and kept beside the index."""

import json
import os
import pickle
import shutil
from functools import partial

import numpy as np
import pytest

from clipkit.data import column_store
from clipkit.data.column_store import gather, known_names, read_columns
from clipkit.data.columns import BUILT_IN, UID_HIGH, UID_LOW, Wanted, class_column, number_columns, number_values
from clipkit.data.index import load_index, sidecar_path
from clipkit.data.source import Source
from clipkit.data.values import hash64

from .conftest import image_bytes, write_tar

UID = "00112233445566778899aabbccddeeff"
META = [
    {"similarity": 0.25, "width": 640, "uid": UID, "group": " cat "},
    {"similarity": "0.5", "uid": UID[:-1], "group": 3},
    {"similarity": True, "uid": UID.upper(), "group": ""},
    {"similarity": None, "uid": 7, "not a name\x1b[2J": 1},
    {"similarity": [1], "similarity_offset": 10**400},
    b"not json",
    b"[" * 100_000,
    None,
]


@pytest.fixture
def source(tmp_path):
    files = []
    for number, meta in enumerate(META):
        files.append((f"{number}.png", image_bytes(number, "PNG", (20 + number, 10))))
        files.append((f"{number}.txt", b" " if number == 4 else b"caf\xc3\xa9 " * (number + 1)))
        if meta is not None:
            files.append((f"{number}.json", meta if isinstance(meta, bytes) else json.dumps(meta).encode()))
    files.append(("no_image.txt", b"x"))
    files.append(("broken.png", image_bytes(1, "PNG")[:20]))
    return Source("s", (str(write_tar(tmp_path / "s.tar", files)),))


def column(source, name, cache=None):
    wanted = number_columns(name, source)
    return number_values(name, source, read_columns(source.shards[0], wanted, cache)).tolist()


def test_numbers_of_the_json(source):
    assert column(source, "similarity")[:3] == [0.25, 0.5, 1.0]
    assert np.isnan(column(source, "similarity")[3:]).all()
    assert np.isnan(column(source, "similarity_offset")).all()  # too large for a float


def test_sizes_are_the_jsons_or_the_headers(source):
    assert column(source, "image_width")[:3] == [20, 21, 22]
    assert column(source, "width")[:3] == [640, 21, 22]
    assert column(source, "height")[:3] == column(source, "side")[:3] == [10] * 3
    assert column(source, "aspect")[:2] == [64, 2.1]
    for name in ("width", "side", "aspect", "image_height"):
        assert np.isnan(column(source, name)[-2:]).all(), name


@pytest.mark.parametrize(
    ("kind", "junk"), [("JPEG", 0), ("JPEG", 90_000), ("WEBP", 0), ("GIF", 0), ("BMP", 0), ("PNG", 0)]
)
def test_a_header_is_found_wherever_it_is(tmp_path, kind, junk):
    data = image_bytes(1, kind, (300, 200))
    for at in range(0, junk, 30_000):  # segments of an application before the frame's
        data = data[:2] + b"\xff\xe5" + (30_000).to_bytes(2, "big") + bytes([at % 251]) * 29_998 + data[2:]
    source = Source("s", (str(write_tar(tmp_path / "s.tar", [("a.jpg", data)])),))
    assert (column(source, "image_width"), column(source, "image_height")) == ([300], [200])


def test_captions_classes_hashes_and_uids(source):
    assert column(source, "caption_length")[:4] == [4, 9, 14, 19]
    assert np.isnan(column(source, "caption_length")[4])
    wanted = [class_column("group", source), Wanted(UID_HIGH), Wanted(UID_LOW)]
    wanted.append(Wanted("image_hash", "", source.places()["image"]))
    group, high, low, image = (read_columns(source.shards[0], wanted, None)[each.stored] for each in wanted)
    assert group.tolist()[:4] == [hash64(b"cat"), hash64(b"3"), 0, 0]
    assert (high.view(np.uint64) == [int(UID[:16], 16), 0, int(UID[:16], 16)] + [0] * 7).all()
    assert low.view(np.uint64)[:3].tolist() == [int(UID[16:], 16), 0, int(UID[16:], 16)]
    assert image.tolist()[0] == hash64(image_bytes(0, "PNG", (20, 10)))
    assert image.tolist()[-2] == 0


def test_columns_are_read_once_and_change_no_fingerprint(source, monkeypatch):
    path = source.shards[0]
    mark, first = load_index(path).fingerprint, column(source, "similarity")
    column(source, "side")
    monkeypatch.setattr(column_store, "_gathered", None)  # whatever reads the shard again fails
    assert np.array_equal(column(source, "similarity"), first, equal_nan=True)
    assert load_index(path).fingerprint == mark
    assert sorted(load_index(path).fields) == ["json", "png", "txt"]


def test_a_rewritten_shard_is_read_again(source):
    path = source.shards[0]
    column(source, "similarity")
    files = [("a.png", image_bytes(0, "PNG")), ("a.json", b'{"similarity": 4}')]
    write_tar(path, files)
    assert column(source, "similarity") == [4.0]


def test_a_damaged_sidecar_is_made_again(source):
    column(source, "similarity")
    sidecar_path(source.shards[0]).write_bytes(b"PK\x03\x04 nonsense")
    assert column(source, "similarity")[:2] == [0.25, 0.5]


def test_where_the_folder_cannot_be_written_the_cache_keeps_them(source, tmp_path, monkeypatch):
    path, cache = source.shards[0], tmp_path / "cache"
    load_index(path)  # the sidecar came with the shard
    real = column_store.write_atomically

    def refuse(place, write):
        if place.parent != cache / "index":
            raise PermissionError(13, "Permission denied")
        real(place, write)

    (cache / "index").mkdir(parents=True)
    monkeypatch.setattr(column_store, "write_atomically", refuse)
    assert column(source, "similarity", cache)[:2] == [0.25, 0.5]
    assert column(source, "side", cache)[:2] == [10, 10]
    monkeypatch.setattr(column_store, "_gathered", None)
    assert column(source, "similarity", cache)[:2] == [0.25, 0.5]
    assert column(source, "height", cache)[0] == 10


def test_many_shards_are_read_before_they_are_asked_for(source, tmp_path, monkeypatch):
    shards = [shutil.copy(source.shards[0], tmp_path / f"{number}.tar") for number in range(column_store._POOLED + 1)]
    shards = [str(path) for path in shards]
    wanted = number_columns("similarity", source)
    monkeypatch.setattr(
        os, "cpu_count", lambda: 1
    )  # several processes are map_shards' own test; that they get is sent here
    pickle.dumps(partial(column_store._gather, wanted=tuple(wanted), cache=None))
    gather(shards, wanted, None)
    monkeypatch.setattr(column_store, "_gathered", None)
    for path in shards:
        assert read_columns(path, wanted, None)[wanted[0].stored][0] == 0.25


def test_names_that_may_be_used(source):
    path = source.shards[0]
    assert known_names(path, None, numbers=True) == [*BUILT_IN, "similarity", "group", "uid"]  # of some samples
    assert known_names(path, None, numbers=False) == ["similarity", "width", "uid", "group", "similarity_offset"]
