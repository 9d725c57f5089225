"""The look-ahead brings what the plan needs next, no more than its share, and its failures end nothing."""

import json
import os
import threading
import time

import numpy as np
import pytest

from clipkit.data.catalogue import open_catalogue
from clipkit.data.fetch import Policy
from clipkit.data.lookahead import LookAhead, NodeOrder
from clipkit.data.node_cache import NodeCache
from clipkit.data.plan import Plan
from clipkit.data.source import Source

POLICY = Policy(tries=1, timeout=2.0, deadline=10.0, pause=0.01)
SIZE, BATCH = 64 * 512, 4096


@pytest.fixture
def setting(tmp_path, web):
    """64 shards of 4,096 samples (as their list says: nobody opens them) in 64 lanes of half a window, and the order of one node."""
    names = [f"{i:02d}.tar" for i in range(64)]
    web.files |= {f"/{name}": bytes(SIZE) for name in names}
    web.files["/sizes.json"] = json.dumps(dict.fromkeys(names, 4096)).encode()

    def make(budget, ranks=(0,), world=1):
        cache = NodeCache(tmp_path / "cache", budget, POLICY)
        held = open_catalogue(Source("s", tuple(f"{web.url}/{name}" for name in names)), None, cache)
        plan = Plan([held.counts], [1.0], 0)
        return NodeOrder(plan, [held], batch_size=BATCH, ranks=ranks, world=world), cache

    return make


def eight_lanes(order):
    """Lanes of eight shards and four windows each, and small batches."""
    source, order.batch_size = order.plan.sources[0], 64
    source.lanes, source.lane_length, source.planned = 8, 64 * 4096 // 8, 64 * 4096


def until(true):
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_which_shards_a_node_needs(setting):
    order, _ = setting(10**9)
    rows = order.plan.rows(np.arange(2 * BATCH))
    assert set(order.shards(0, 2)) == {(0, shard) for shard in rows.shard.tolist()}
    assert order.shards(0)[0] == (0, int(rows.shard[0]))  # first what is needed first
    half, _ = setting(10**9, ranks=(0, 1), world=4)
    mine = rows.shard[np.isin(np.arange(2 * BATCH) % 4, (0, 1))]
    assert set(half.shards(0, 2)) == {(0, shard) for shard in mine.tolist()}
    assert len(half.shards(0)) < len(order.shards(0))


def test_bytes_needed_at_once(setting):
    order, cache = setting(10**9)
    assert order.needed(2, cache) == 0  # no size is known before a shard was here
    cache.fetch(order.url((0, 0)))
    assert order.needed(2, cache) == 64 * SIZE


def test_it_fetches_ahead_within_its_share(setting, web):
    order, cache = setting(10**9)
    position = 0
    ahead = LookAhead(order, cache, position=lambda: position, end=40 * BATCH)
    until(lambda: cache.held() == 64 * SIZE)
    ahead.stop()
    assert not ahead.failures
    assert all(web.hits[path] == 1 for path in web.files)


def test_it_waits_for_the_position_and_keeps_in_use_what_lies_between(setting, web):
    order, cache = setting(36 * SIZE)
    eight_lanes(order)
    state = {"position": 0}
    ahead = LookAhead(order, cache, position=lambda: state["position"], end=64 * 4096)
    fetched = set()
    for state["position"] in range(0, 64 * 4096, 1 << 14):
        now = [order.url(shard) for shard in order.shards(state["position"])]
        until(lambda now=now: all(cache.path(url).exists() for url in now))
        assert cache.held() <= cache.budget
        fetched.update(now)
    ahead.stop()
    assert not ahead.failures
    assert len(fetched) == 64
    # the 8 shards that two lanes share are needed at both ends of the epoch; hardly another leaves before its time
    assert sum(hits for path, hits in web.hits.items() if path.endswith(".tar")) <= 64 + 8 + 4


def test_what_lies_ahead_is_in_use(setting):
    order, cache = setting(10**9)
    eight_lanes(order)
    state = {"position": 0}
    ahead = LookAhead(order, cache, position=lambda: state["position"], end=64 * 4096, threads=0)
    while shard := ahead._take():
        cache.fetch(order.url(shard))
    for path in cache.folder.rglob("*.tar"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns))
    state["position"] = 64 * 4096 - 64
    assert ahead._take() is None
    used = {shard for shard in [(0, i) for i in range(64)] if cache.path(order.url(shard)).stat().st_atime}
    assert used >= set(order.shards(state["position"]))
    assert len(used) < 64


def test_failures_are_counted_and_end_nothing(setting, web, caplog):
    order, cache = setting(10**9)
    shards = [f"/{i:02d}.tar" for i in range(64)]
    for path in shards[:5]:
        web.script[path] = ["404"] * 9
    ahead = LookAhead(order, cache, position=lambda: 0, end=BATCH)
    until(lambda: cache.held() == 59 * SIZE and len(ahead.failures) == 5)
    ahead.stop()
    assert "5 shards could not be fetched ahead" in caplog.text
    assert "404" in caplog.text


def test_stopping_does_not_wait_for_a_server(setting, web):
    order, cache = setting(10**9)
    for path in [path for path in web.files if path.endswith(".tar")]:
        web.script[path] = ["stall"] * 9
    before = threading.active_count()
    ahead = LookAhead(order, cache, position=lambda: 0, end=BATCH)
    until(lambda: sum(web.hits.values()) > 1)
    ahead.stop(0.01)
    until(lambda: threading.active_count() <= before + 5)  # each leaves when its own time limit ends
