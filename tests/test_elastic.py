"""The promise about resuming, through the command line: killed in the middle and gone on with on another number of ranks and workers, a run sees
the samples of an uninterrupted one at every position, pixel for pixel."""

import json
import os
import signal
import subprocess
import sys

import pytest

from .conftest import TINY_MODEL, write_shard

BATCH = 8
WITNESS = '''
import hashlib, json, os, signal
from pathlib import Path

from clipkit import distributed
from clipkit.losses.base import Loss


class Witness(Loss):
    """No loss at all: it writes down what the step was given, and may end the process in the middle of it."""

    def forward(self, features, batch):
        rank, world = distributed.rank(), distributed.world_size()
        seen = {
            batch["position"] + rank + place * world: [
                key, hashlib.sha256(image.numpy().tobytes()).hexdigest(), tokens.tolist(), int(id_)
            ]
            for place, (key, image, tokens, id_) in enumerate(zip(batch["key"], batch["image"], batch["text"], batch["id"]))
        }
        with (Path(os.environ["WITNESS"]) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(seen) + "\\n")
        if batch["position"] == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        return features["image"].pooled.sum() * 0


LOSSES = {"witness": lambda scale_of: Witness()}
'''
CONFIG = {
    "model": "tiny.json",
    "seed": 3,
    "data": {
        "train": {
            "many": {"shards": "many/*.tar", "weight": 2},
            "few": {"shards": "few/*.tar"},
        },
        "augment": {"scale": [0.3, 1.0], "flip": 0.5, "grayscale": 0.3, "affine": {"degrees": 20}},
        "batch_size": BATCH,
        "bad_samples": 0.2,
    },
    "loss": {"kind": "infonce", "duplicates": "ignore"},
    "optim": {"lr": 1e-3},
    "trainer": {"accelerator": "cpu"},
    "logging": {"every": "100 steps"},
}


@pytest.fixture
def folder(tmp_path):
    """Two sources, one of them with bad captions, and the module that watches."""
    for name, counts in {"many": (300, 41, 7), "few": (70,)}.items():
        (tmp_path / name).mkdir()
        for number, count in enumerate(counts):
            captions = ["" if name == "few" and i % 10 == 3 else f"{name} {number} {i}" for i in range(count)]
            write_shard(tmp_path / name / f"{number}.tar", count, first=1000 * number, captions=captions)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_MODEL))
    (tmp_path / "witness.py").write_text(WITNESS)
    return tmp_path


def fit(folder, run, steps, *, devices, workers, kill_at=None):
    """Start or go on with a run; its exit code and, per position, what was seen there."""
    seen_folder = folder / f"{run}-{devices}-{kill_at}"
    seen_folder.mkdir()
    path = os.pathsep.join([str(folder), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "WITNESS": str(seen_folder)}
    environment |= {} if kill_at is None else {"KILL_AT": str(kill_at)}
    config = CONFIG | {"checkpoint": {"every": f"{steps // 8} steps", "keep_last": 1}}
    config |= {"trainer": CONFIG["trainer"] | {"length": f"{steps} steps", "devices": devices}}
    config |= {"data": CONFIG["data"] | {"workers": workers}}
    (folder / f"{run}.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "clipkit", "fit", f"{run}.yaml", f"run={run}", "--plugin", "witness"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seen = {}
    for path in seen_folder.iterdir():
        for line in path.read_text().splitlines():
            for position, found in json.loads(line).items():
                assert seen.setdefault(int(position), found) == found
    return done, seen


@pytest.mark.parametrize("steps", [160, pytest.param(2000, marks=pytest.mark.slow)])
def test_half_a_run_killed_and_gone_on_with_on_two_ranks_sees_what_a_whole_one_sees(folder, steps):
    done, whole = fit(folder, "whole", steps, devices=1, workers=0)
    assert done.returncode == 0, done.stderr
    assert sorted(whole) == list(range(BATCH * steps))
    done, first = fit(folder, "broken", steps, devices=1, workers=2, kill_at=BATCH * (steps // 2))
    assert done.returncode == -signal.SIGKILL
    done, second = fit(folder, "broken", steps, devices=2, workers=1)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert first == {position: whole[position] for position in range(BATCH * (steps // 2 + 1))}
    # what was trained between the last checkpoint and the kill is trained again; nothing is left out
    assert min(second) in range(BATCH, BATCH * (steps // 2 + 1))
    assert second == {position: whole[position] for position in range(min(second), BATCH * steps)}
    accounts = [json.loads((folder / run / "data.json").read_text()) for run in ("whole", "broken")]
    assert accounts[0] == accounts[1]
    assert sum(sum(epoch["bad"].values()) for epoch in accounts[0]["few"]) > 0
