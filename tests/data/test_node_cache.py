"""A node fetches a shard once, keeps within its bytes, and notices a shard that changed."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from clipkit.data.catalogue import open_catalogue
from clipkit.data.fetch import Policy
from clipkit.data.node_cache import NodeCache, locked
from clipkit.data.reader import ShardReader
from clipkit.data.source import Source
from clipkit.data.tar import ShardError
from clipkit.data.urls import local_names, shard_name

from .conftest import write_tar

POLICY = Policy(tries=3, timeout=3.0, deadline=10.0, pause=0.01)


def shard(tmp_path, first=0, samples=3, size=3000):
    noise = np.random.default_rng(first)
    files = [(f"{first + i:05d}.txt", noise.bytes(size)) for i in range(samples)]
    return write_tar(tmp_path / "made.tar", files).read_bytes()


def cache(tmp_path, budget=10**9):
    return NodeCache(tmp_path / "cache", budget, POLICY)


def take(path):
    with locked(path, 5):
        pass


def test_two_processes_fetch_a_shard_once(tmp_path, web):
    web.files["/0.tar"], web.script["/0.tar"] = shard(tmp_path), ["half"]  # so that the others come while it is fetched
    code = (
        "import pathlib, sys; from clipkit.data.node_cache import NodeCache; print('ready', flush=True); sys.stdin.readline(); "
        "NodeCache(pathlib.Path(sys.argv[1]), 10**9).fetch(sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), f"{web.url}/0.tar"]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == [b"ready\n"] * 2
    threads = [threading.Thread(target=cache(tmp_path).fetch, args=(f"{web.url}/0.tar",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for process in processes:
        process.communicate(b"\n")
    for thread in threads:
        thread.join()
    assert [process.returncode for process in processes] == [0, 0]
    assert web.hits["/0.tar"] == 2
    path = cache(tmp_path).path(f"{web.url}/0.tar")
    assert path.read_bytes() == web.files["/0.tar"]
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".json", ".lock", ".tar"]


def test_a_lock_outlives_no_process_and_no_fork_inherits_it(tmp_path):
    held = multiprocessing.get_context("fork").Event()

    def wait():
        held.set()
        time.sleep(60)

    with locked(tmp_path / "lock", 1):
        child = multiprocessing.get_context("fork").Process(target=wait, daemon=True)
        child.start()
        held.wait()
        with pytest.raises(TimeoutError, match="another thread"), locked(tmp_path / "lock", 0.05):
            pass
        other = multiprocessing.get_context("fork").Process(target=take, args=(tmp_path / "lock",))
        other.start()
    other.join()
    assert other.exitcode == 0  # it does not take its parent's thread for one of its own
    with locked(tmp_path / "lock", 1):  # though the child lives on
        pass
    child.kill()
    child.join()

    def hold():
        with locked(tmp_path / "lock", 1):
            wait()

    held.clear()
    child = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
    child.start()
    held.wait()
    with pytest.raises(TimeoutError, match="another process"), locked(tmp_path / "lock", 0.05):
        pass
    child.kill()
    child.join()
    with locked(tmp_path / "lock", 1):
        pass


def test_eviction_keeps_within_the_budget_and_takes_the_least_recently_used(tmp_path, web):
    size = len(shard(tmp_path))
    for i in range(6):
        web.files[f"/{i}.tar"] = shard(tmp_path, 10 * i)
    held = cache(tmp_path, 3 * size + size // 2)
    for i in range(3):
        held.fetch(f"{web.url}/{i}.tar")
        time.sleep(0.01)
    assert held.touch(f"{web.url}/0.tar")
    for i in range(3, 6):
        held.fetch(f"{web.url}/{i}.tar")
        time.sleep(0.01)
        assert held.held() <= held.budget
        assert held.touch(f"{web.url}/0.tar")
    assert [held.path(f"{web.url}/{i}.tar").exists() for i in range(6)] == [True, False, False, False, True, True]
    with pytest.raises(ShardError, match=r"at most .*; raise data.cache_size"):
        cache(tmp_path, size - 1).fetch(f"{web.url}/1.tar")


def test_sidecars_count_and_leave_with_their_shards(tmp_path, web):
    for i in range(3):
        web.files[f"/{i}.tar"] = shard(tmp_path, 10 * i)
    held = cache(tmp_path, 3 * len(web.files["/0.tar"]))
    for i in range(3):
        os.close(held.open(f"{web.url}/{i}.tar").fd)
        time.sleep(0.01)
        assert held.held() <= held.budget + 10_000  # its sidecar is written after it
    assert not held.path(f"{web.url}/0.tar").exists()
    assert len(list(held.folder.rglob("*.idx.npz"))) == len(list(held.folder.rglob("*.tar")))


def test_a_reader_reads_on_and_lets_go_of_what_was_evicted(tmp_path, web):
    for i in range(2):
        web.files[f"/{i}.tar"] = shard(tmp_path, 10 * i)
    web.files["/sizes.json"] = json.dumps({"0.tar": 3, "1.tar": 3}).encode()
    held = cache(tmp_path)
    source = Source("s", tuple(f"{web.url}/{i}.tar" for i in range(2)))
    reader = ShardReader([open_catalogue(source, None, held)], [frozenset({"txt"})], None, held)
    first = reader.members(0, 0, 0, 10**6)
    held.discard(source.shards[0])
    assert reader.members(0, 0, 0, 10**6) == first
    assert reader.key(0, 1, 0) == "00010"
    assert list(reader._open) == [(0, 1)]
    assert reader.members(0, 0, 0, 10**6) == first
    assert web.hits["/0.tar"] == 2


@pytest.mark.parametrize("change", ["size", "etag"])
def test_a_remote_shard_that_changed_is_refused(tmp_path, web, change):
    url = f"{web.url}/0.tar"
    web.files["/0.tar"] = shard(tmp_path)
    held = cache(tmp_path)
    held.fetch(url)
    held.fetch(url)
    assert web.hits["/0.tar"] == 1
    held.discard(url)
    held.fetch(url)
    web.files["/0.tar"] = shard(tmp_path, first=5, samples=4 if change == "size" else 3)
    held.fetch(url)  # what is here is still what was
    held.discard(url)
    with pytest.raises(ShardError, match=f"remote shard changed.*delete {held.path(url).parent}"):
        held.fetch(url)
    assert not held.path(url).exists()
    assert not list(held.folder.rglob("*.part"))


def test_a_weak_etag_says_nothing(tmp_path, web):
    web.files["/0.tar"], web.script["/0.tar"] = shard(tmp_path), ['tag:W/"a"', 'tag:W/"b"']
    held = cache(tmp_path)
    for _ in range(2):
        held.fetch(f"{web.url}/0.tar")
        held.discard(f"{web.url}/0.tar")
    assert web.hits["/0.tar"] == 2


def test_a_tar_cut_by_a_wrong_length_is_not_kept(tmp_path, web):
    url = f"{web.url}/0.tar"
    buffer = io.BytesIO(shard(tmp_path, samples=9))
    web.files["/0.tar"] = buffer.getvalue()[: 9 * (512 + 3072)]  # no end blocks: the length is the last sample's end
    web.script["/0.tar"] = ["short"]
    held = cache(tmp_path)
    with pytest.raises(ShardError, match=f"^{url}: "):
        held.open(url)
    assert not held.path(url).exists()


def test_a_killed_fetch_leaves_nothing_that_stays(tmp_path, web):
    web.files["/0.tar"] = shard(tmp_path)
    held = cache(tmp_path, len(web.files["/0.tar"]) + 100)
    path = held.path(f"{web.url}/1.tar")
    path.parent.mkdir()
    part = path.with_name(path.name + ".part")
    part.write_bytes(b"x" * 5000)
    with pytest.raises(ShardError, match="on their way"):  # it may be growing
        held.fetch(f"{web.url}/0.tar")
    os.utime(part, (1, 1))
    held.fetch(f"{web.url}/0.tar")
    assert not part.exists()


def test_names_of_files_are_our_own():
    hostile = "https://host/..%2f..%2f.bashrc"
    folder, name = local_names(hostile)
    assert "/" not in name
    assert len(folder) == 16
    plain = "https://host/a/0.tar"
    assert local_names(plain) == local_names("https://me:pw@host/a/0.tar?X-Amz-Signature=1&X-Amz-Date=2")
    assert local_names(plain) != local_names("https://host/a/0.tar?part=1")
    assert local_names(plain)[0] == local_names("https://host/a/1.tar?part=1")[0]
    assert shard_name("https://host/a/0.tar?part=1&token=x") == "0.tar?part=1"
