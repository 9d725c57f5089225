"""A slow rank is named with its cause: the rule on numbers, and a run of two real ranks one of which sleeps."""

import json
import re

import pytest

from clipkit.callbacks.stragglers import RankTime, slow_rank
from tests.test_training import start, write_config

SLEEPY = """
import os, sys, time
from clipkit.cli.main import run
from clipkit.data.dataset import ShardDataset
from clipkit.towers.towers import Towers

mine, read, forward = os.environ["RANK"] == "1", ShardDataset.__getitems__, Towers.forward

def slow_read(self, request):
    if mine and request.start < 16 * 20:
        time.sleep(0.2)
    return read(self, request)

def slow_forward(self, batch, *rest):
    if mine and batch["position"] >= 16 * 20:
        time.sleep(0.2)
    return forward(self, batch, *rest)

ShardDataset.__getitems__, Towers.forward = slow_read, slow_forward
sys.exit(run(sys.argv[1:]))
"""


def test_the_rule():
    even = RankTime(0.01, 0.1, 0.01)
    assert slow_rank([even] * 4, step=0.3) is None
    late = RankTime(0.01, 0.3, 0.0)
    found = slow_rank([RankTime(0.01, 0.1, 0.2), RankTime(0.01, 0.1, 0.2), late], step=0.5)
    assert (found.rank, found.cause, found.own, found.others) == (2, "compute", 0.3, 0.1)
    assert found.score == pytest.approx(0.11 / 0.31)
    # twice as long, but of what is nothing beside the step
    assert slow_rank([RankTime(0.001, 0.002, 0.0), RankTime(0.001, 0.006, 0.0)], step=0.5) is None
    # nobody comes late, yet one waits far longer
    found = slow_rank([even, even, RankTime(0.01, 0.1, 0.15)], step=0.5)
    assert (found.rank, found.cause) == (2, "communication")


def test_a_rank_that_sleeps_is_named_with_its_cause_within_twenty_steps(tmp_path, tiny_model, shards):
    script = tmp_path / "sleepy.py"
    script.write_text(SLEEPY)
    trainer = {"length": "40 steps", "accelerator": "cpu"}
    config = write_config(
        tmp_path, tiny_model, shards, trainer=trainer, logging={"every": "5 steps"}, checkpoint={"every": "100 steps"}
    )
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script))
    process = start(config, tmp_path / "run", launcher=launcher)
    said = process.communicate(timeout=280)[0]
    assert process.returncode == 0, said
    warned = re.findall(r"warning: step (\d+): rank (\d) \(\S+\) is slow in (\w+)", said)
    named = [(rank, cause) for _, rank, cause in warned]
    assert named == [("1", "data"), ("1", "compute")], said
    assert int(warned[0][0]) <= 20
    assert 20 < int(warned[1][0]) <= 40
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    seconds = {cause: last[f"train/rank_seconds/{cause}"] for cause in ("data", "compute", "communication")}
    assert seconds["compute"][1] > 0.2 > seconds["compute"][0]
    assert seconds["communication"][0] > seconds["communication"][1]
