"""Counts come from small files beside the shards; no shard is fetched for them."""

import json
from pathlib import Path

import pytest

from clipkit.data.catalogue import open_catalogue
from clipkit.data.fetch import Policy
from clipkit.data.index import VERSION
from clipkit.data.indexing import write_folder_index
from clipkit.data.node_cache import NodeCache
from clipkit.data.reader import ShardReader
from clipkit.data.remote_counts import index_remote, own_index, remote_counts
from clipkit.data.source import Source
from clipkit.data.tar import ShardError

POLICY = Policy(tries=3, timeout=3.0, deadline=10.0, pause=0.01)


@pytest.fixture
def shards(make_shards, web, tmp_path):
    """Local shards, the same behind the server, and their URLs."""
    paths = make_shards([5, 7, 6])
    for path in paths:
        web.files["/x/" + path.rpartition("/")[2]] = Path(path).read_bytes()
    return paths, [f"{web.url}/x/{i:05d}.tar" for i in range(3)]


@pytest.fixture
def cache(tmp_path):
    return NodeCache(tmp_path / "cache", 10**9, POLICY)


def counts(urls, cache):
    return [counted.samples for counted in remote_counts(urls, cache)]


def no_shard_fetched(web):
    return not [path for path in web.hits if path.endswith(".tar")]


def test_our_index_gives_the_fingerprints_of_local_shards(shards, web, cache):
    paths, urls = shards
    web.files["/x/index.json"] = write_folder_index(paths[0].rpartition("/")[0]).read_bytes()
    there, here = open_catalogue(Source("s", tuple(urls)), None, cache), open_catalogue(Source("s", paths), None)
    assert there.counts.tolist() == here.counts.tolist() == [5, 7, 6]
    assert there.fingerprint == here.fingerprint
    assert dict(web.hits) == {"/x/index.json": 1}
    open_catalogue(Source("s", tuple(urls)), None, cache)  # another rank of the node
    assert dict(web.hits) == {"/x/index.json": 1}


def test_sizes_json(shards, web, cache):
    web.files["/x/sizes.json"] = json.dumps({"00000.tar": 5, "00001.tar": 7, "00002.tar": 6}).encode()
    web.script["/x/sizes.json"] = ["503", "half"]
    assert counts(shards[1], cache) == [5, 7, 6]
    assert no_shard_fetched(web)


def test_img2dataset_stats(shards, web, cache):
    for i, count in enumerate([5, 7, 6]):
        web.files[f"/x/{i:05d}_stats.json"] = json.dumps({"count": 10, "successes": count}).encode()
    web.script["/x/index.json"] = ["403"]  # S3's answer for what is not there
    assert counts(shards[1], cache) == [5, 7, 6]
    first = open_catalogue(Source("s", tuple(shards[1])), None, cache).fingerprint
    other = NodeCache(cache.folder.parent.parent / "other", 10**9, POLICY)
    assert open_catalogue(Source("s", tuple(shards[1])), None, other).fingerprint == first
    assert no_shard_fetched(web)


def test_without_counts_the_cure_is_said(shards, cache, web, monkeypatch):
    urls = [f"{url}?X-Amz-Signature=canary" for url in shards[1]]
    with pytest.raises(ValueError, match="3 of 3 remote shards have no count") as error:
        counts(urls, cache)
    command = f"clipkit data index '{web.url}/x/{{00000..00002}}.tar?***'"
    assert f"CLIPKIT_CACHE={cache.folder.parent} {command}" in str(error.value)  # where this run looks for them
    monkeypatch.setenv("CLIPKIT_CACHE", str(cache.folder.parent))
    with pytest.raises(ValueError, match="3 of 3 remote shards have no count") as error:
        counts(urls, cache)
    assert f"\n  {command}" in str(error.value)
    assert "canary" not in str(error.value)


def test_index_remote_counts_in_the_cache(shards, web, cache):
    paths, urls = shards
    (index,) = index_remote(urls, cache)
    assert index == own_index(cache, urls[0])
    assert counts(urls, cache) == [5, 7, 6]
    there = open_catalogue(Source("s", tuple(urls)), None, cache)
    assert there.fingerprint == open_catalogue(Source("s", paths), None).fingerprint
    web.files["/x/index.json"] = index.read_bytes()  # copied there, it serves others
    assert counts(urls, NodeCache(cache.folder.parent.parent / "other", 10**9, POLICY)) == [5, 7, 6]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.json", "{"),
        ("index.json", "[]"),
        ("index.json", '{"version": 99, "shards": []}'),
        (
            "index.json",
            f'{{"version": {VERSION}, "shards": [{{"name": "00000.tar", "count": 1, "fingerprint": "x"}}]}}',
        ),
        ("sizes.json", '{"00000.tar": -1}'),
        ("sizes.json", '{"00000.tar": true}'),
        ("sizes.json", "[1]"),
        ("00000_stats.json", '{"count": 3}'),
        ("00000_stats.json", "[" * 100_000),
    ],
)
def test_lists_that_are_no_good(shards, web, cache, name, text):
    web.files[f"/x/{name}"] = text.encode()
    with pytest.raises(ShardError, match=f"/x/{name}: .*mend it, or remove it"):
        counts(shards[1], cache)


def test_a_list_that_counts_wrong_shows_when_the_shard_comes(shards, web, cache):
    web.files["/x/sizes.json"] = json.dumps({"00000.tar": 4, "00001.tar": 7, "00002.tar": 6}).encode()
    held = open_catalogue(Source("s", tuple(shards[1])), None, cache)
    reader = ShardReader([held], [frozenset({"txt"})], None, cache)
    assert reader.key(0, 1, 0) == "00005"
    with pytest.raises(ShardError, match=r"00000\.tar: holds 5 samples .* says 4; make that list anew"):
        reader.key(0, 0, 0)
    web.files["/x/sizes.json"] = json.dumps({"00000.tar": 5, "00001.tar": 7, "00002.tar": 6}).encode()
    assert counts(shards[1], cache) == [5, 7, 6]  # mended, it is asked for again at once
    web.files["/x/index.json"] = json.dumps(
        {"version": VERSION, "shards": [{"name": "00001.tar", "count": 7, "size": 9, "fingerprint": f"9-{'0' * 32}"}]}
    ).encode()
    other = NodeCache(cache.folder.parent.parent / "other", 10**9, POLICY)
    reader = ShardReader([open_catalogue(Source("s", (shards[1][1],)), None, other)], [frozenset({"txt"})], None, other)
    with pytest.raises(ShardError, match="another content"):
        reader.key(0, 0, 0)


def test_pipes_are_counted_by_reading_them(shards, cache):
    urls = [f"pipe:cat {path}" for path in shards[0]]
    with pytest.raises(ValueError, match="no count"):
        counts(urls, cache)
    index_remote(urls, cache)
    assert counts(urls, cache) == [5, 7, 6]


def test_the_verb_indexes_urls_and_a_run_then_starts(shards, web, tmp_path, monkeypatch, capsys):
    from clipkit.cli.main import run as command_line

    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    _, urls = shards
    assert command_line(["data", "index", f"{web.url}/x/{{00000..00002}}.tar?token=canary"]) == 0
    said = capsys.readouterr()
    assert "it serves every machine" in said.out
    assert command_line(["data", "index", urls[0], "--ray", "auto"]) == 2  # it would be ignored
    assert "canary" not in said.out + said.err
    held = NodeCache(tmp_path / "cache", 10**9, POLICY)
    assert counts([f"{url}?token=canary" for url in urls], held) == [5, 7, 6]
