"""Training on remote shards: the same batches as on local ones, whatever the server does on the way."""

import json
import os
from pathlib import Path

import pytest

from clipkit.data.fetch import Policy
from clipkit.data.indexing import write_folder_index
from clipkit.data.node_cache import NodeCache
from clipkit.data.source import Source, expand_shards
from clipkit.data.tar import ShardError

from .test_datamodule import batches, module, same

POLICY = Policy(tries=4, timeout=1.5, deadline=20.0, pause=0.01)


@pytest.fixture
def shards(make_shards, web):
    """Local shards, the same behind the server, and their pattern."""
    paths = make_shards([30, 41, 25, 36])
    for path in paths:
        web.files["/x/" + path.rpartition("/")[2]] = Path(path).read_bytes()
    return paths, f"{web.url}/x/{{00000..00003}}.tar"


def remote(pattern):
    return Source("pairs", tuple(expand_shards(pattern)))


def test_the_same_batches_as_local(shards, web, tmp_path):
    paths, pattern = shards
    web.files["/x/index.json"] = write_folder_index(os.path.dirname(paths[0])).read_bytes()
    web.script = {
        "/x/00000.tar": ["503", "503"],
        "/x/00001.tar": ["half"],
        "/x/00002.tar": ["stall"],
        "/x/index.json": ["503"],
    }
    cache = NodeCache(tmp_path / "cache", 10**9, POLICY)
    here, there = module(Source("pairs", paths)), module(remote(pattern), workers=2, node_cache=cache)
    assert there.state_dict() == here.state_dict()  # a run may go on with copies, or without
    for left, right in zip(batches(here), batches(there), strict=True):
        same(left, right)
    there.teardown("fit")
    good = {f"/x/0000{i}.tar": hits for i, hits in enumerate((3, 2, 2, 1))}
    assert {path: web.hits[path] for path in good} == good  # each once, apart from what failed


def test_by_counts_alone_and_resumed(shards, web, tmp_path):
    paths, pattern = shards
    for i, count in enumerate([30, 41, 25, 36]):
        web.files[f"/x/{i:05d}_stats.json"] = json.dumps({"successes": count}).encode()
    cache = NodeCache(tmp_path / "cache", 10**9, POLICY)
    whole = batches(module(Source("pairs", paths)))
    first = module(remote(pattern), node_cache=cache)
    head = batches(first, 11)
    second = module(remote(pattern), node_cache=NodeCache(tmp_path / "other", 10**9, POLICY), workers=1)
    second.load_state_dict(first.state_dict())
    for left, right in zip(whole, head + batches(second), strict=True):
        same(left, right)
    first.teardown("fit")
    second.teardown("fit")


def test_ranks_of_a_node_share_its_shards(shards, web, tmp_path):
    paths, pattern = shards
    web.files["/x/index.json"] = write_folder_index(os.path.dirname(paths[0])).read_bytes()
    cache = NodeCache(tmp_path / "cache", 10**9, POLICY)
    for rank in range(2):
        here, there = (
            module(source, ranks=(rank, 2), node_cache=cache) for source in (Source("pairs", paths), remote(pattern))
        )
        looks_ahead = []
        begun = there._start
        there._start = lambda begun=begun, of=there, seen=looks_ahead: (begun(), seen.append(of._look_ahead))[0]
        for left, right in zip(batches(here, 9), batches(there, 9), strict=True):
            same(left, right)
        assert [found is None for found in looks_ahead] == [rank == 1]  # one for the node
    assert max(web.hits.values()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_cannot_be_had_ends_the_run_with_its_name(shards, web, tmp_path, workers):
    paths, pattern = shards
    web.files["/x/index.json"] = write_folder_index(os.path.dirname(paths[0])).read_bytes()
    data = module(remote(pattern), workers=workers, node_cache=NodeCache(tmp_path / "cache", 10**9, POLICY))
    probed = next(path for path in web.hits if path.endswith(".tar"))
    for path in web.files:
        if path.endswith(".tar") and path != probed:
            web.script[path] = ["403"] * 99
    with pytest.raises(ShardError, match=r"0000\d\.tar: cannot be fetched, the server answered 403"):
        batches(data)
    data.teardown("fit")


def test_a_cache_that_holds_too_little_is_refused(shards, web, tmp_path):
    paths, pattern = shards
    web.files["/x/index.json"] = write_folder_index(os.path.dirname(paths[0])).read_bytes()
    largest = max(os.path.getsize(path) for path in paths)
    with pytest.raises(ValueError, match=r"data\.cache_size=.* are about [\d,]+ bytes .*raise it"):
        module(remote(pattern), node_cache=NodeCache(tmp_path / "cache", 2 * largest, POLICY))


def test_a_tight_cache_costs_fetches_not_samples(shards, web, tmp_path):
    paths, pattern = shards
    web.files["/x/sizes.json"] = json.dumps(
        dict(zip((f"{i:05d}.tar" for i in range(4)), [30, 41, 25, 36], strict=True))
    ).encode()
    cache = NodeCache(tmp_path / "cache", 10**9, POLICY)
    data = module(remote(pattern), node_cache=cache)
    cache.budget = 2 * max(os.path.getsize(path) for path in paths) + 20_000  # below what is read at once
    for left, right in zip(batches(module(Source("pairs", paths)), 6), batches(data, 6), strict=True):
        same(left, right)
    data.teardown("fit")
    assert sum(hits for path, hits in web.hits.items() if path.endswith(".tar")) > 4


def test_nothing_usable_names_the_members(shards, web, tmp_path):
    paths, pattern = shards
    web.files["/x/index.json"] = write_folder_index(os.path.dirname(paths[0])).read_bytes()
    source = Source("wrong", tuple(expand_shards(pattern)), fields={"image": ("png",), "text": ("txt",)})
    with pytest.raises(ValueError, match=r"the members in http://127.* are \.jpg, \.txt"):
        module(source, node_cache=NodeCache(tmp_path / "cache", 10**9, POLICY))


def test_a_cache_folder_is_needed(shards):
    with pytest.raises(ValueError, match="pass cache="):
        module(remote(shards[1]))
