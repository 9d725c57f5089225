"""Whole runs whose checkpoints are written beside the training, copied away, lost, and met by full disks and exceptions."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch

import clipkit
from clipkit import checkpoint
from clipkit.checkpoint import newest, steps
from clipkit.cli.main import run as command_line
from clipkit.module import CLIPModule
from tests.conftest import TINY_MODEL, write_shard
from tests.test_training import (  # noqa: F401 - config is a fixture
    STEPS,
    config,
    final_hash,
    record,
    write_config,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.json").write_text(json.dumps(TINY_MODEL))
    (folder / "shards").mkdir()
    write_shard(folder / "shards" / "00000.tar", 40)
    write_shard(folder / "shards" / "00001.tar", 24, first=40)
    path = write_config(folder, folder / "tiny.json", folder / "shards")
    return clipkit.fit(path, {"run": str(folder / "run"), "optim.ema": 0.9}).folder


def without_times(folder):
    """The record less the figures that a clock made."""
    timed = ("train/samples_per_second", "train/data_wait")
    return [{name: value for name, value in line.items() if name not in timed} for line in record(folder)]


def test_a_run_that_lost_its_folder_goes_on_from_its_copies_with_the_same_bits(config, whole, tmp_path, capsys):  # noqa: F811
    place = f"file://{tmp_path}/copies"
    options = {"checkpoint.background": True, "checkpoint.copy_to": place, "optim.ema": 0.9}
    broken = tmp_path / "broken"
    clipkit.fit(config, {"run": str(broken)} | options)
    for step in ("4", "8", "12"):  # the same files, however they were written
        for name in ("model.safetensors", "state.pt"):
            wanted = (whole / "checkpoints" / step / name).read_bytes()
            assert (broken / "checkpoints" / step / name).read_bytes() == wanted
            assert (tmp_path / "copies" / step / name).read_bytes() == wanted
    shutil.rmtree(broken)
    shutil.rmtree(tmp_path / "copies" / "12")
    (tmp_path / "copies" / "8" / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    clipkit.fit(config, {"run": str(broken)} | options)
    said = capsys.readouterr().err
    assert f"passed over: {place}/8: model.safetensors has 0 bytes" in said
    assert f"fetched {place}/4" in said
    assert final_hash(broken) == final_hash(whole)
    assert (broken / "checkpoints" / "12" / "state.pt").read_bytes() == (
        whole / "checkpoints" / "12" / "state.pt"
    ).read_bytes()  # moments, schedule, averages and counts
    assert without_times(broken) == without_times(whole)[4:]  # the record itself is not copied
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["12", "4", "8", "config.yaml"]
    branch = clipkit.fit(config, {"run": str(tmp_path / "branch"), "trainer.length": "14 steps"}, resume=f"{place}/8")
    assert (branch.step, record(branch.folder)[0]["step"]) == (14, 9)


def test_copies_of_another_run_and_places_out_of_reach_are_bad_input_and_leave_nothing(
    config,  # noqa: F811
    shards,
    tmp_path,
    capsys,
):
    place = f"checkpoint.copy_to=file://{tmp_path}/copies"
    assert command_line(["fit", str(config), f"run={tmp_path / 'a'}", place, "trainer.length=6 steps"]) == 0
    for arguments, words in (
        ([place, "optim.lr=0.5"], ["copies of another run", "optim.lr"]),
        ([place, "--resume", "never", "trainer.length=6 steps"], ["holds copies of a run already"]),
        (["--resume", f"file://{tmp_path}/nowhere"], ["no copy of a checkpoint there"]),
        (["--resume", "https://me:secret@host/run"], ["is no place for copies", "***@host"]),
        (["checkpoint.copy_to=s3://me:secret@bucket/run"], ["checkpoint.copy_to", "credentials", "***@bucket"]),
    ):
        capsys.readouterr()
        assert command_line(["fit", str(config), f"run={tmp_path / 'b'}", *arguments]) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert "secret" not in said
        assert not (tmp_path / "b").exists()
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "copies" / "6")
    again = ["fit", str(config), f"run={tmp_path / 'a'}", place, "trainer.length=6 steps"]
    (shards / "00001.tar").rename(tmp_path / "elsewhere")
    assert command_line(again) == 2  # refused after the copy was fetched: other data
    assert "--allow-mismatch" in capsys.readouterr().err
    (tmp_path / "elsewhere").rename(shards / "00001.tar")
    assert command_line(again) == 0
    assert "step 4 of 6" in capsys.readouterr().err


def test_a_place_that_fails_costs_nothing_but_the_copies(config, tmp_path, capsys, monkeypatch):  # noqa: F811
    from fsspec.implementations.local import LocalFileSystem

    put = LocalFileSystem.put_file

    def flaky(self, path, target, **options):
        if "/8/" in target:
            raise PermissionError("Bearer abcdef1234567: 403")
        return put(self, path, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", flaky)
    place = f"file://{tmp_path}/copies"
    run = clipkit.fit(config, {"run": str(tmp_path / "run"), "checkpoint.copy_to": place})
    said = capsys.readouterr().err
    assert run.code == 0
    assert "is not copied" in said
    assert "abcdef" not in said
    assert [line.get("train/checkpoint_copy_failures") for line in record(run.folder)] == [None] * 8 + [1] * 4
    assert sorted(path.name for path in (tmp_path / "copies").iterdir() if (path / "manifest.json").exists()) == [
        "12",
        "4",
    ]
    assert "copies of checkpoints failed" in said


def test_an_exception_leaves_the_newest_checkpoint_as_it_is(config, whole, tmp_path, monkeypatch):  # noqa: F811
    step = CLIPModule.training_step
    seen = {}

    def poisoned(module, batch, index):
        if index == 9:
            seen.update({path.name: path.read_bytes() for path in (folder / "checkpoints" / "8").iterdir()})
            with torch.no_grad():
                next(module.parameters()).fill_(float("nan"))
            raise RuntimeError("a fault")
        return step(module, batch, index)

    folder = tmp_path / "run"
    options = {"run": str(folder), "optim.ema": 0.9, "logging.csv": True}
    with monkeypatch.context() as patch:
        patch.setattr(CLIPModule, "training_step", poisoned)
        with pytest.raises(RuntimeError, match="a fault"):
            clipkit.fit(config, options)
    assert [path.name for path in steps(folder / "checkpoints")] == ["8", "4"]
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints" / "8").iterdir()} == seen
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "8"]
    clipkit.fit(config, options)
    assert final_hash(folder) == final_hash(whole)
    assert without_times(folder) == without_times(whole)
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(step) for step in range(1, STEPS + 1)]


def test_a_stop_while_one_is_written_beside_the_training_is_durable(config, tmp_path, monkeypatch):  # noqa: F811
    step, write = CLIPModule.training_step, checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda path, data: (time.sleep(0.1), write(path, data))[1])

    def signalled(module, batch, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(module, batch, index)

    monkeypatch.setattr(CLIPModule, "training_step", signalled)
    options = {"checkpoint.background": True, "checkpoint.every": "1 steps", "checkpoint.keep_last": 1}
    run = clipkit.fit(config, options | {"run": str(tmp_path / "run")})
    assert (run.code, run.stopped, run.step) == (75, "SIGTERM", 6)
    assert newest(run.folder / "checkpoints") == (run.folder / "checkpoints" / "6", [])
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["6"]
    assert json.loads((run.folder / "stopped.json").read_text())["step"] == 6 == len(record(run.folder))


def test_a_run_on_a_full_disk_goes_on_and_says_so(config, tmp_path, monkeypatch, capsys):  # noqa: F811
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here (it needs root)")
    try:
        step, size = CLIPModule.training_step, {}

        def filling(module, batch, index):
            if index == 5:
                with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
            if index == 9:
                size["last good"] = [path.name for path in steps(disk / "run" / "checkpoints")]
                (disk / "ballast").unlink()
            return step(module, batch, index)

        with monkeypatch.context() as patch:
            patch.setattr(CLIPModule, "training_step", filling)
            run = clipkit.fit(config, {"run": str(disk / "run"), "data.trace": False})
        said = capsys.readouterr().err
        assert (run.code, size["last good"]) == (0, ["4"])
        assert "training goes on, 1 failed so far" in said
        assert "1 checkpoints could not be written" in said
        lines = record(run.folder)
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # those of the full disk came later
        assert [line.get("train/checkpoint_failures") for line in lines] == [None] * 8 + [1] * 4
        assert [path.name for path in steps(run.folder / "checkpoints")] == ["12", "4"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_whose_last_checkpoint_is_lost_is_not_finished(config, tmp_path, monkeypatch, capsys):  # noqa: F811
    from clipkit.callbacks import checkpoint_io

    write = checkpoint_io.write_checkpoint

    def full_at_the_end(folder, **parts):
        if folder.name == str(STEPS):
            raise OSError(28, "No space left on device")
        write(folder, **parts)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io, "write_checkpoint", full_at_the_end)
        assert command_line(["fit", str(config), f"run={tmp_path / 'run'}"]) == 1
    said = capsys.readouterr().err
    assert f"step {STEPS} was trained, but its checkpoint could not be written" in said
    assert "Traceback" not in said
    assert "finished" not in said.replace("not finished", "")
    assert command_line(["fit", str(config), f"run={tmp_path / 'run'}"]) == 0
    assert "step 8 of 12" in capsys.readouterr().err
