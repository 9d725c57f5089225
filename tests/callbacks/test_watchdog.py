"""Who is to blame for a hang, and what the thread does about it. Ranks that are stopped in a real run: `tests/benchmarks/test_chaos.py`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from clipkit.callbacks.heartbeat import Heartbeat
from clipkit.callbacks.watchdog import HEARTBEATS, Limits, Seen, Watchdog, diagnose

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # how a thread leaves here


def seen(rank, phase, step, silent=0.1):
    return Seen(rank, phase, step, silent, f"process {rank} on here", "")


@pytest.mark.parametrize(
    ("ranks", "guilty", "why"),
    [
        ([("step", 7), ("data", 7), ("step", 7)], [1], "waiting for data, has not arrived"),
        ([("pause", 6), ("step", 7), ("step", 7)], [0], "between two steps, has not arrived"),
        ([("step", 7), ("step", 7), ("step", 6, 40)], [2], "no sign of life for 40 s"),
        (
            [("pause", 7), ("step", 7, 40), ("data", 6)],
            [1],
            "no sign of life",
        ),  # the stopped one, not who waits behind it
        ([("step", 7), ("end", 9, 99), ("step", 7)], [0, 2], "has not arrived"),  # who is done beats no more
        ([("step", 7), ("step", 7), ("step", 7)], [], "all ranks wait for one another"),
    ],
)
def test_who_is_to_blame(ranks, guilty, why):
    found, sentence = diagnose([seen(rank, *what) for rank, what in enumerate(ranks)], silence=5)
    assert found == guilty
    assert why in sentence


@pytest.fixture
def watch(tmp_path):
    """Watchdogs of this process, whose end is an event."""
    made = []

    def make(rank, limits, world=2):
        left, event = [], threading.Event()

        def leave(message):
            left.append(message)
            event.set()
            raise SystemExit  # of the thread, which os._exit would end

        dog = Watchdog(
            tmp_path, rank=rank, world=world, limits=limits, holding=lambda r, s: f"shards of {r}, {s}", leave=leave
        )
        dog.start()
        made.append(dog)
        return dog, left, event

    yield make
    for dog in made:
        dog.stop()


STOPPED = """
import sys, time
from pathlib import Path
from clipkit.callbacks.watchdog import Limits, Watchdog
dog = Watchdog(Path(sys.argv[1]), rank=1, world=2, limits=Limits(60, 60, 60), holding=lambda r, s: "", leave=print)
dog.start()
dog.enter("step", 9)
print("up", flush=True)
time.sleep(60)
"""


def test_a_stopped_process_is_named_with_what_it_held_and_ended(tmp_path, watch):
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    while not (tmp_path / HEARTBEATS / "rank1.json").exists():
        time.sleep(0.05)
    dog, left, event = watch(0, Limits(30, 1.5, 30))
    dog.enter("pause", 9)  # an evaluation: slow is no fault there, but a stopped rank is found all the same
    time.sleep(0.5)
    assert not event.is_set()
    process.send_signal(signal.SIGSTOP)
    assert event.wait(20)
    assert f"rank 1 (process {process.pid} on" in left[0]
    assert "at step 9, computing, shards of 1, 9, has given no sign of life" in left[0]
    assert "trainer.timeouts.step allows 1.5 s" in left[0]
    assert process.wait(10) == -signal.SIGKILL
    for rank in range(2):
        assert "Thread 0x" in (tmp_path / f"stacks.rank{rank}.txt").read_text()


def test_a_rank_is_known_from_its_first_moment(tmp_path, watch):
    watch(0, Limits(60, 60, 60), world=1)  # a period is a second
    assert json.loads((tmp_path / HEARTBEATS / "rank0.json").read_text())["pid"] == os.getpid()


def test_a_slow_evaluation_is_no_hang_and_a_slow_step_is(watch):
    dog, left, event = watch(0, Limits(30, 0.3, 30), world=1)
    dog.enter("pause", 3)
    assert not event.wait(1.0)
    for step in range(4, 9):
        dog.enter("step", step)
        assert not event.wait(0.15)
    assert event.wait(5)
    assert "no progress for" in left[0]


def test_the_others_leave_with_the_one_that_tells(tmp_path, watch, monkeypatch):
    monkeypatch.setattr("clipkit.callbacks.watchdog._PATIENCE", 0.2)
    first, told, event = watch(0, Limits(30, 0.3, 30))
    second, silent, also = watch(1, Limits(30, 30, 30))
    first.enter("step", 4)
    second.enter("data", 4)
    assert event.wait(5)
    assert also.wait(5)
    assert silent == [""]
    assert "rank 1" in told[0]
    assert "waiting for data, shards of 1, 4" in told[0]
    assert json.loads((tmp_path / HEARTBEATS / "asked.json").read_text())["rank"] == 0
    Watchdog.clear(tmp_path)
    assert not list(tmp_path.glob("**/*.json"))


def test_a_callback_moves_the_watchdog_through_the_phases(monkeypatch):
    class Trainer:
        global_step = 0

    moved, timeouts = [], []

    class Dog:
        limits = Limits(600, 300, 7200)

        def enter(self, phase, step):
            moved.append((phase, step))

    monkeypatch.setattr("clipkit.distributed.set_timeout", timeouts.append)
    beat, trainer = Heartbeat(Dog()), Trainer()
    for callback in (beat, beat.last):
        callback.on_train_start(trainer, None)
    for step in range(1, 3):
        beat.on_train_batch_start(trainer, None, {}, step - 1)
        trainer.global_step = step
        for callback in (beat, beat.last):
            callback.on_train_batch_end(trainer, None, None, {}, step - 1)
    assert moved == [
        ("pause", 1),
        ("start", 1),
        ("start", 1),
        ("pause", 1),
        ("data", 2),
        ("step", 2),
        ("pause", 2),
        ("data", 3),
    ]
    assert timeouts == [7230, 630, 7230, 330, 7230, 330]


def test_the_process_that_is_killed_is_the_one_that_beat(tmp_path, watch):
    dog, _, _ = watch(0, Limits(30, 30, 30))
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        dog._end_stopped({"pid": stranger.pid, "host": dog._me["host"], "born": "1"})
        dog._end_stopped({"pid": stranger.pid, "host": "elsewhere", "born": dog._me["born"]})
        assert stranger.poll() is None
    finally:
        os.kill(stranger.pid, signal.SIGKILL)
        stranger.wait()
