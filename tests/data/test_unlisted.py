"""The indexes that a run lacks are built once, whoever starts at the same time and whoever is killed."""

import os
import signal
import subprocess
import sys

import pytest

from clipkit.cli.main import run
from clipkit.data import indexing
from clipkit.data.index import cached_path, read_sidecar, sidecar_path
from clipkit.data.locks import NAME, alone
from clipkit.data.source import Source
from clipkit.data.tar import ShardError
from clipkit.data.unlisted import prepare_indexes

from .conftest import write_tar

# a rank of another process: it says what it does, and at its fourth shard waits for a file
RANK = """
import sys, time
from pathlib import Path
from clipkit.data import indexing
from clipkit.data.source import Source
from clipkit.data.unlisted import prepare_indexes

real, built = indexing.index_one, []

def slowly(cache, path):
    print("builds", flush=True)
    built.append(path)
    while len(built) == 4 and not Path(sys.argv[1], "gate").exists():
        time.sleep(0.02)
    return real(cache, path)

indexing.index_one = slowly
prepare_indexes([Source("s", tuple(sys.argv[2:]))], Path(sys.argv[1], "cache"), workers=1)
print("through", flush=True)
"""


@pytest.fixture
def shards(tmp_path):
    """Six shards in two folders."""
    paths = []
    for number in range(6):
        (tmp_path / f"f{number % 2}").mkdir(exist_ok=True)
        paths.append(str(write_tar(tmp_path / f"f{number % 2}" / f"{number}.tar", [("a.txt", b"1"), ("b.txt", b"2")])))
    return paths


def rank(tmp_path, shards):
    command = [sys.executable, "-c", RANK, str(tmp_path), *shards]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_whole(tmp_path, shards):
    assert all(read_sidecar(sidecar_path(path)).size == os.stat(path).st_size for path in shards)
    left = {name for folder in ("f0", "f1") for name in os.listdir(tmp_path / folder) if name.startswith(".")}
    assert not left, "locks or temporary files stayed"
    assert all((tmp_path / folder / "index.json").is_file() for folder in ("f0", "f1"))


def test_one_builds_and_the_other_finds_it(tmp_path, shards):
    first = rank(tmp_path, shards)
    assert first.stdout.readline() == "builds\n"
    second = rank(tmp_path, shards)
    assert second.stderr.readline() == f"another process is indexing {tmp_path / 'f0'}; waiting for it\n"
    (tmp_path / "gate").touch()
    ends = [process.communicate(timeout=60) for process in (first, second)]
    assert [out for out, _ in ends] == ["builds\n" * 5 + "through\n", "through\n"]
    assert "indexing 6 shards of 2 folders" in ends[0][1]
    check_whole(tmp_path, shards)


def test_a_killed_builder_is_taken_over_where_it_was(tmp_path, shards):
    first = rank(tmp_path, shards)
    assert [first.stdout.readline() for _ in range(4)] == ["builds\n"] * 4
    second = rank(tmp_path, shards)
    assert "waiting" in second.stderr.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (tmp_path / "gate").touch()
    out, _ = second.communicate(timeout=60)
    assert out == "builds\n" * 6 + "through\n"  # three of them only read again
    for path in shards:
        sidecar_path(path).unlink()  # not needed any more: the lists are there
    prepare_indexes([Source("s", tuple(shards))], tmp_path / "cache")
    assert not any(sidecar_path(path).exists() for path in shards)


def test_only_what_is_in_no_list_is_built(tmp_path, shards, monkeypatch):
    built = []
    real = indexing.index_one
    monkeypatch.setattr(indexing, "index_one", lambda cache, path: built.append(path) or real(cache, path))
    sources = [Source("a", tuple(shards[:4])), Source("b", (*shards[2:], "s3://bucket/x.tar"))]
    prepare_indexes(sources, None)
    assert sorted(built) == sorted(shards)
    prepare_indexes(sources, None)
    assert len(built) == 6
    write_tar(shards[3], [(f"{number}.txt", b"") for number in range(40)])
    prepare_indexes(sources, None)
    assert built[6:] == [shards[3]]
    check_whole(tmp_path, shards)


def test_damaged_shards_are_all_named_and_the_rest_is_built(tmp_path, shards):
    for path in (shards[1], shards[4]):
        with open(path, "r+b") as file:
            file.truncate(1024)
    with pytest.raises(ShardError) as caught:
        prepare_indexes([Source("s", tuple(shards))], None)
    assert all(path in str(caught.value) for path in (shards[1], shards[4]))
    assert sum(sidecar_path(path).exists() for path in shards) == 4


def test_locks_are_all_held_or_none_and_leave_nothing(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    a, b = (str(tmp_path / name) for name in "ab")
    with alone([a], None) as mine:
        assert mine
        asked = iter([False, True])
        with alone([b, a], None, lambda: next(asked)) as other:
            assert not other
        assert not (tmp_path / "b" / NAME).exists()
    assert not (tmp_path / "a" / NAME).exists()
    (tmp_path / "a" / NAME).mkdir()  # as a folder that cannot be written
    with alone([a], tmp_path / "cache") as mine:
        assert mine
        assert cached_path(tmp_path / "a" / NAME, tmp_path / "cache").is_file()
    with alone([a], None) as mine:  # nowhere to lock: nothing can be written either
        assert mine


def test_a_run_indexes_its_shards_before_its_ranks_meet(tmp_path, shards, monkeypatch, capsys, tiny_model):
    """Also for validation; the ranks' meeting is where this run ends."""
    monkeypatch.setattr("clipkit.distributed.init", lambda *_, **__: (_ for _ in ()).throw(ValueError("ranks meet")))
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {tiny_model}\ndata:\n  train: {{a: {{shards: '{tmp_path}/f0', filter: side > 1}}}}\n  cache: {tmp_path}/cache\n"
        f"  val: {{b: {{shards: '{tmp_path}/f1/*.tar'}}}}\n  batch_size: 4\n"
        "loss: infonce\noptim: {lr: 1e-3}\ntrainer: {length: 2 steps, accelerator: cpu}\n"
    )
    assert run(["fit", str(config), f"run={tmp_path / 'r'}"]) == 2
    assert "ranks meet" in capsys.readouterr().err
    assert len(list((tmp_path / "cache" / "selection").glob("*.json"))) == 1
    check_whole(tmp_path, shards)
