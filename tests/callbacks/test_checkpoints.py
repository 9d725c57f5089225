import errno
import math
import os
import resource
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clipkit import checkpoint
from clipkit.callbacks.agreement import Agreement
from clipkit.callbacks.checkpoint_io import FolderCheckpointIO
from clipkit.callbacks.checkpoints import SaveCheckpoints, crossed
from clipkit.checkpoint import newest, read_checkpoint, steps, weight_hash


class Trainer:
    """As much of a Trainer as saving needs: it writes real checkpoints."""

    is_global_zero = True
    should_stop = False
    global_step = 0

    def __init__(self, io=None):
        self.io = io or FolderCheckpointIO({})

    def save_checkpoint(self, path, storage_options=None):
        given = {"state_dict": {"w": torch.zeros(1)}, "global_step": self.global_step}
        self.io.save_checkpoint(given, path, storage_options)


def saver(folder, **options):
    defaults = {"every": 20, "milestone": None, "batch_size": 10, "steps": 12}
    defaults |= {"keep_last": 2, "keep_best": 0, "best": None, "figures": {}, "io": FolderCheckpointIO({})}
    return SaveCheckpoints(folder=folder, agreement=Agreement(), **(defaults | options))


def run(callback, trainer, figures=None, first=1):
    for step in range(first, callback.steps + 1):
        trainer.global_step = step
        if figures is not None:
            callback.figures = figures[step]
        callback.on_train_batch_end(trainer, None, None, None, 0)


def test_the_newest_stay_and_the_last_step_is_always_saved(tmp_path):
    run(saver(tmp_path, every=50), Trainer())
    assert [path.name for path in steps(tmp_path)] == ["12", "10"]


@pytest.mark.parametrize(("best", "kept"), [("val/t/acc1", ["12", "4"]), ("val/loss", ["12", "2"])])
def test_the_best_stays_whatever_its_age_and_of_a_loss_the_smallest(tmp_path, best, kept):
    values = {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.5, 10: 0.3, 12: 0.2}
    figures = [{best: values[step]} if step in values else {} for step in range(13)]
    callback = saver(tmp_path, keep_last=1, keep_best=1, best=best)
    run(callback, Trainer(), figures)
    assert [path.name for path in steps(tmp_path)] == kept
    again = saver(tmp_path, keep_last=1, keep_best=1, best=best)
    again.load_state_dict(callback.state_dict())
    assert again.scores == callback.scores


def test_a_figure_belongs_to_the_weights_it_was_measured_on(tmp_path):
    figures = [{"val/loss": {5: 0.1, 10: 0.9}[step]} if step in (5, 10) else {} for step in range(13)]
    run(saver(tmp_path, every=40, keep_last=1, keep_best=1, best="val/loss"), Trainer(), figures)
    assert [path.name for path in steps(tmp_path)] == ["12", "5"]  # not 8, which came after the evaluation of 5


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path):
    values = {2: 0.5, 4: 0.3, 6: math.nan, 8: math.nan, 10: math.inf, 12: math.nan}
    figures = [{"val/loss": values[step]} if step in values else {} for step in range(13)]
    run(saver(tmp_path, keep_last=1, keep_best=1, best="val/loss"), Trainer(), figures)
    assert [path.name for path in steps(tmp_path)] == ["12", "4"]


def test_without_an_interval_only_the_end_is_saved(tmp_path):
    run(saver(tmp_path, every=None), Trainer())
    assert [path.name for path in steps(tmp_path)] == ["12"]


def test_milestones_are_saved_and_stay_for_good(tmp_path):
    callback = saver(tmp_path, every=40, milestone=50, keep_last=1)
    run(callback, Trainer())
    assert [path.name for path in steps(tmp_path)] == ["12", "10", "5"]
    again = saver(tmp_path, steps=14, every=20, milestone=None, keep_last=1)  # the interval may change: milestones stay
    again.load_state_dict(callback.state_dict())
    run(again, Trainer(), first=13)
    assert [path.name for path in steps(tmp_path)] == ["14", "10", "5"]


def test_a_clock_saves_beside_the_samples(tmp_path):
    callback = saver(tmp_path, every=80, keep_last=9)
    trainer = Trainer()
    for step in range(1, 13):
        trainer.global_step = step
        callback.agreement.agreed = {"checkpoint"} if step in (3, 8) else set()
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert [path.name for path in steps(tmp_path)] == ["12", "8", "3"]


def test_what_the_run_does_not_go_on_from_is_put_away_and_never_counts_as_new(tmp_path, capsys):
    run(saver(tmp_path, keep_last=9), Trainer())
    (tmp_path / "12" / "manifest.json").unlink()
    trainer = Trainer()
    trainer.global_step = 8
    callback = saver(tmp_path, every=10, keep_last=2)
    callback.on_train_start(trainer, None)
    said = capsys.readouterr().err
    assert f"{tmp_path / '12'} is newer" in said
    assert [path.name for path in steps(tmp_path)] == ["8", "6", "4", "2"]
    assert (tmp_path / "10.passed-over" / "manifest.json").is_file()
    trainer.global_step = 9
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert [path.name for path in steps(tmp_path)] == ["9", "8"]
    assert newest(tmp_path) == (tmp_path / "9", [])


REFUSALS = {  # who says no, and whether the disk says it at that call
    "room": (shutil, "disk_usage", lambda path: True),
    "folder": (Path, "mkdir", lambda path, *_: ".writing-" in str(path)),
    "file": (Path, "open", lambda path, *_: path.name in ("state.pt", "state.json", "manifest.json")),
    "fsync": (os, "fsync", lambda handle: True),
    "rename": (Path, "rename", lambda path, *_: ".writing-" in str(path)),
}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("who", REFUSALS)
def test_whoever_says_that_the_disk_is_full_the_last_good_one_stays_and_training_goes_on(
    tmp_path, monkeypatch, capsys, who, background
):
    io = FolderCheckpointIO({}, background=background)
    callback = saver(tmp_path, io=io, every=10, keep_last=1)
    trainer = Trainer(io)
    trainer.global_step = 1
    callback.on_train_batch_end(trainer, None, None, None, 0)
    io.wait()
    good = (tmp_path / "1" / "manifest.json").read_bytes()
    owner, name, applies = REFUSALS[who]
    real = getattr(owner, name)

    def refuse(*args, **kwargs):
        if applies(*args):
            if who == "room":
                return SimpleNamespace(free=1)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        trainer.global_step = 2
        callback.on_train_batch_end(trainer, None, None, None, 0)
        io.wait()
    assert (io.failures, io.lost) == (1, tmp_path / "2")
    assert "training goes on, 1 failed so far" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert (tmp_path / "1" / "manifest.json").read_bytes() == good
    trainer.global_step = 3
    callback.on_train_batch_end(trainer, None, None, None, 0)
    io.wait()
    assert io.lost is None
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_limit_that_falls_into_the_optimisers_file_is_a_full_disk_too(tmp_path):
    io = FolderCheckpointIO({})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        io.save_checkpoint(
            {"state_dict": {}, "global_step": 1, "optimizer_states": [torch.zeros(10_000)]}, tmp_path / "1"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert io.failures == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_beside_the_training_are_the_weights_of_its_step(tmp_path, monkeypatch):
    under_way, most = [0], [0]
    write = checkpoint._write

    def slow(path, data):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.02)
        under_way[0] -= 1
        return write(path, data)

    monkeypatch.setattr(checkpoint, "_write", slow)
    model = torch.nn.Linear(40, 40)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    io = FolderCheckpointIO({}, background=True)
    hashes, moments, steps_beside = {}, {}, 0
    for step in range(1, 400):
        model(torch.randn(4, 40)).square().sum().backward()
        optimiser.step()
        if step % 50 == 0:
            hashes[step] = weight_hash(model.state_dict())
            moments[step] = optimiser.state_dict()["state"][0]["exp_avg"].clone()
            known = {"global_step": step, "optimizer_states": [optimiser.state_dict()]}
            io.save_checkpoint({"state_dict": model.state_dict(), **known}, tmp_path / str(step))
        steps_beside += under_way[0]
    io.wait()
    assert steps_beside > 50  # training went on while they were written
    assert most[0] == 1
    for step, wanted in hashes.items():
        stored = read_checkpoint(tmp_path / str(step))
        assert weight_hash(stored.model) == wanted
        assert torch.equal(stored.state["optimizer_states"][0]["state"][0]["exp_avg"], moments[step])


def test_at_once_or_in_the_background_the_bytes_are_the_same(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    optimiser = torch.optim.AdamW([{"params": [p], "lr": 0.1} for p in model.parameters()])
    model(torch.randn(4, 8)).sum().backward()
    optimiser.step()
    whole = torch.arange(1000.0)
    shared = {"part": whole[10:20], "again": whole[10:20], "turned": torch.ones(3, 5).T, "none": torch.zeros(0)}
    shared |= {"one": whole[:5].clone()}
    shared |= {"same": shared["one"]}
    given = {"state_dict": model.state_dict(), "global_step": 1, "loops": {"fit": [1, (2, 3)]}, "callbacks": shared}
    given["optimizer_states"] = [optimiser.state_dict()]
    for background in (False, True):
        io = FolderCheckpointIO({"a": 1}, background=background)
        io.save_checkpoint(given, tmp_path / str(background) / "1")
        io.wait()
    one, two = tmp_path / "False" / "1", tmp_path / "True" / "1"
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    assert (one / "state.pt").stat().st_size < 20_000  # the part, not the whole that it is of


def test_older_ones_go_only_once_the_new_one_is_there(tmp_path, monkeypatch):
    io = FolderCheckpointIO({}, background=True)
    callback, trainer = saver(tmp_path, io=io, every=10, keep_last=1), Trainer(io)
    go, write = threading.Event(), checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda path, data: (go.wait(10), write(path, data))[1])
    go.set()
    trainer.global_step = 1
    callback.on_train_batch_end(trainer, None, None, None, 0)
    io.wait()
    go.clear()
    trainer.global_step = 2
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert [path.name for path in steps(tmp_path)] == ["1"]
    go.set()
    trainer.global_step, trainer.should_stop = 3, True  # a stop is durable when the step is left
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_mistake_in_the_thread_is_no_full_disk(tmp_path, monkeypatch):
    io = FolderCheckpointIO({}, background=True)
    monkeypatch.setattr(checkpoint, "_write", lambda path, data: 1 / 0)
    io.save_checkpoint({"state_dict": {}, "global_step": 1}, tmp_path / "1")
    with pytest.raises(ZeroDivisionError):
        io.wait()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"state\['callbacks'\] is a PosixPath"):
        io.save_checkpoint({"state_dict": {}, "global_step": 1, "callbacks": tmp_path}, tmp_path / "1")


def test_a_disk_that_refuses_costs_the_checkpoint_and_not_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    io = FolderCheckpointIO({"steps": 3})
    io.save_checkpoint({"state_dict": {}, "global_step": 1}, tmp_path / "file" / "1")
    assert io.failures == 1
    assert "training goes on" in capsys.readouterr().err


def test_lightnings_dictionary_comes_back_from_the_folder(tmp_path):
    io = FolderCheckpointIO({"steps": 3})
    given = {
        "state_dict": {"w": torch.ones(2)},
        "epoch": 0,
        "global_step": 2,
        "pytorch-lightning_version": "2.6.6",
        "loops": {"fit_loop": {"n": 1}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0)}}}],
        "callbacks": {"SaveCheckpoints": {"scores": {}}},
    }
    io.save_checkpoint(given, tmp_path / "2")
    back = io.load_checkpoint(tmp_path / "2")
    assert set(back) == set(given)
    assert back["loops"] == given["loops"]
    assert torch.equal(back["state_dict"]["w"], torch.ones(2))
    assert back["optimizer_states"][0]["state"][0]["step"] == 2


def test_every_multiple_of_the_interval_is_met_once_whatever_the_batch():
    for every in (1, 7, 25, 64):
        met = [step for step in range(1, 60) if crossed(step, batch_size=10, every=every)]
        expected = sorted({-(-k // 10) for k in range(every, 591, every)})
        assert met == expected
