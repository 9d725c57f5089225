"""Signals to processes as a user starts them: before the ranks have met, to a launcher alone, and a second Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from clipkit.checkpoint import read_checkpoint
from tests.test_training import start, wait_for_step, write_config


def descendants(pid):
    """The processes below one."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def test_a_second_interrupt_ends_launcher_ranks_and_loaders_at_once(tmp_path, tiny_model, shards):
    data = {"train": {"squares": {"shards": f"{shards}/*.tar"}}, "batch_size": 16, "workers": 1}
    trainer = {"length": "5000 steps", "devices": 2, "accelerator": "cpu"}
    config = write_config(tmp_path, tiny_model, shards, data=data, trainer=trainer)
    process = start(config, tmp_path / "run")
    wait_for_step(tmp_path / "run", 1, process)
    below = descendants(process.pid)
    assert len(below) >= 5  # torchrun, two ranks, a loader each
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:  # two that come at once are one to the system
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    process.communicate(timeout=1)
    assert process.returncode == 130
    deadline = time.monotonic() + 10
    while (alive := [pid for pid in below if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def test_a_rank_that_waits_for_its_peers_leaves_at_once(tmp_path, tiny_model, shards):
    trainer = {"length": "12 steps", "accelerator": "cpu"}
    config = write_config(tmp_path, tiny_model, shards, trainer=trainer)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment = os.environ | alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    code = (
        "import sys, clipkit.distributed as d\n"
        "meet = d.init\n"
        "d.init = lambda *a, **k: (print('waiting', flush=True), meet(*a, **k))\n"
        "from clipkit.cli.main import run\nsys.exit(run(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "fit", str(config), f"run={tmp_path / 'run'}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line == "waiting\n":
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 75, said
    assert json.loads((tmp_path / "run" / "stopped.json").read_text()) == {
        "reason": "SIGUSR1",
        "step": 0,
        "steps": 0,
        "code": 75,
    }
    process = start(config, tmp_path / "run", "trainer.devices=1")
    assert process.wait(120) == 0, "a folder with that word alone is a new one"
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "12").info["step"] == 12


def test_a_signal_while_it_loads_is_answered_with_75():
    code = (
        "import sys, time, clipkit.api as api\n"
        "api.fit = lambda *a, **k: (print('loading', flush=True), time.sleep(60))\n"
        "from clipkit.cli.main import run\nsys.exit(run(sys.argv[1:]))\n"
    )
    for number in (signal.SIGTERM, signal.SIGUSR1):
        command = [sys.executable, "-c", code, "fit", "demo"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (
            75,
            f"stopped by {number.name} outside training; nothing is lost, the same command goes on\n",
        )


def test_other_commands_unwind_and_their_forked_workers_end_as_ever():
    code = (
        "import multiprocessing, os, signal, sys, time, clipkit.api as api\n"
        "def explain(*a, **k):\n"
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "    child.start(); time.sleep(0.5); child.terminate(); child.join()\n"
        "    try: print(child.exitcode, flush=True); time.sleep(60)\n"  # inside: the signal may come before print returns
        "    finally: print('put away', flush=True)\n"
        "import clipkit.cli.explain as verb\n"
        "verb.explain_image = explain\n"
        "from clipkit.cli.main import run\nsys.exit(run(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "explain", "model", "a.png", "a cat"]
    for alone, (code_there, put_away) in (({}, (143, "put away\n")), ({"LOCAL_RANK": "0"}, (-signal.SIGTERM, ""))):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | alone
        )
        assert process.stdout.readline() == f"{-signal.SIGTERM}\n"
        process.send_signal(signal.SIGTERM)
        done, said = process.communicate(timeout=30)
        assert (process.returncode, done) == (code_there, put_away)
        assert said == ("stopped by SIGTERM\n" if put_away else "")  # a rank under a launcher ends at once
