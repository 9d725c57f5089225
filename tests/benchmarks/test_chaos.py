"""Kills and signals to real runs: six of each always, a hundred and thirty in `make slow`; and the arithmetic of the harness."""

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks.test_benchmarks import ROOT, last_line, run

NOTHING = ("mismatches", "torn", "orphans", "leaks")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def kills(*arguments, timeout):
    """The figures of a tortured run, in which nothing was lost; how long it took is not asked."""
    done = run("benchmarks/chaos.py", *arguments, timeout=timeout)
    figures = {name: value["value"] for name, value in last_line("chaos", done)["figures"].items()}
    assert {name: figures[name] for name in NOTHING} == dict.fromkeys(NOTHING, 0), done.stderr
    assert all(count for name, count in figures.items() if name.startswith("faults_")), done.stderr
    return figures


@pytest.mark.timeout(620)
def test_six_kills_change_no_bit():
    figures = kills("--quick", timeout=600)
    assert [figures[f"faults_{kind}"] for kind in ("save", "edge", "random")] == [2, 1, 3]


@pytest.mark.slow
@pytest.mark.timeout(7220)
def test_a_hundred_kills_change_no_bit():
    figures = kills(timeout=7200)
    assert figures["faults_save"] + figures["faults_edge"] + figures["faults_random"] + figures["missed"] == 100


def signals(*arguments, timeout):
    """How many trials there were, all of which ended as they must within their 30 s."""
    done = run("benchmarks/signals.py", *arguments, timeout=timeout)
    result = last_line("signals", done)
    assert result["held"], done.stdout + done.stderr
    return result["figures"]["trials"]["value"]


@pytest.mark.timeout(620)
def test_two_signals_a_subset_lose_nothing():
    assert signals("--quick", timeout=600) == 6


@pytest.mark.slow
@pytest.mark.timeout(3620)
def test_ten_signals_a_subset_lose_nothing():
    assert signals(timeout=3600) == 30


@pytest.mark.slow
@pytest.mark.timeout(1820)
def test_faults_of_every_kind_change_no_bit():
    figures = kills("--faults", "16", timeout=1800)
    assert {f"faults_{kind}" for kind in ("save", "edge", "random", "stop", "term", "disk", "web")} <= figures.keys()


@pytest.mark.slow
@pytest.mark.timeout(620)
def test_a_stopped_rank_is_named_in_time():
    done = run("benchmarks/hangs.py", "--quick", timeout=600)
    assert done.returncode == 0, done.stderr


CHILD = """
import json, os, sys
from pathlib import Path
from chaos_faults import Fault, install
launch, folder = Path(sys.argv[1]), Path(sys.argv[2]) / "checkpoints"
(launch / "pids.json").write_text(json.dumps([os.getpid()]))
fault = Fault("save", victim=0, after=0, point=int(sys.argv[3]), cut=0.5) if len(sys.argv) > 3 else None
install(launch, fault, 0, 0, lambda first, size: False)
import torch
from clipkit.checkpoint import verify, write_checkpoint
for step in (1, 2):
    write_checkpoint(folder / str(step), model={"w": torch.ones(9)}, state={"a": 1}, info={"step": step})
"""


def test_a_kill_hits_the_write_point_that_was_drawn_and_leaves_a_marker(tmp_path):
    from clipkit.checkpoint import newest

    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}

    def child(name, *arguments):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", CHILD, str(tmp_path / name), str(tmp_path / name), *arguments]
        return subprocess.run(command, env=environment, check=False, timeout=120).returncode, tmp_path / name

    code, folder = child("whole")
    assert code == 0
    assert not (folder / "marker.json").exists()
    points = int((folder / "points").read_text())
    assert points >= 8
    assert points % 2 == 0, "both checkpoints are written alike"
    code, folder = child("inside", str(points // 2 + 1))
    assert code == -9
    marker = json.loads((folder / "marker.json").read_text())
    assert "/checkpoints/.2." in marker["path"]
    found, passed_over = newest(folder / "checkpoints")
    assert (found.name, passed_over) == ("1", [])


@pytest.mark.usefixtures("benchmarks")
def test_a_quarter_is_inside_saves_and_a_quarter_at_edges():
    import random

    from chaos import OTHERS, plan

    kinds = plan(100, random.Random(0), others=False)
    assert [kinds.count(kind) for kind in ("save", "edge", "random")] == [25, 25, 50]
    kinds = plan(6, random.Random(0), others=False)
    assert [kinds.count(kind) for kind in ("save", "edge", "random")] == [2, 1, 3]
    assert {*OTHERS, "save", "edge", "random"} == set(plan(16, random.Random(0), others=True))


@pytest.mark.usefixtures("benchmarks")
def test_edges_are_where_an_epoch_ends_within_a_batch():
    from chaos_world import BATCH, EPOCH, edges

    assert EPOCH % BATCH != 0
    found = [first for first in range(0, 3 * EPOCH, BATCH) if edges(first, BATCH)]
    assert [(first // EPOCH, (first + BATCH) // EPOCH) for first in found] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.usefixtures("benchmarks")
def test_a_leak_stays_while_a_save_ends():
    from chaos import leaked

    assert not leaked([30, *[34] * 40, 35]), "a save has a file open"
    assert leaked([30, *[34] * 20, *range(35, 55)])
    assert not leaked([30, 31, 35]), "too few steps to tell"
