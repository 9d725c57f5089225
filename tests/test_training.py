"""Whole runs: real processes, real kills, real ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import clipkit
from clipkit.checkpoint import newest, read_checkpoint, steps, weight_hash
from clipkit.cli.main import run as command_line
from tests.conftest import write_shard

STEPS = 12


def write_config(folder, model, shards, **overrides):
    """A configuration of 12 steps of 16 pairs on two shards of squares."""
    config = {
        "model": str(model),
        "seed": 3,
        "data": {"train": {"squares": {"shards": f"{shards}/*.tar"}}, "batch_size": 16, "workers": 0, "trace": True},
        "loss": {"kind": "infonce", "duplicates": "ignore"},
        "optim": {"lr": 1e-3, "warmup": "2 steps", "clip_norm": 1.0},
        "trainer": {"length": f"{STEPS} steps", "devices": 1, "accelerator": "cpu"},
        "checkpoint": {"every": "4 steps", "keep_last": 10},
        "logging": {"every": "1 steps"},
    } | overrides
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def config(tmp_path, tiny_model, shards):
    return write_config(tmp_path, tiny_model, shards)


def record(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def keys(folder, rank=0):
    lines = [json.loads(line) for line in (folder / f"samples.rank{rank}.jsonl").read_text().splitlines()]
    return {line["position"]: line["keys"] for line in lines}


def final_hash(folder, step=STEPS):
    return weight_hash(read_checkpoint(folder / "checkpoints" / str(step)).model)


def start(config, folder, *arguments, launcher=()):
    command = [sys.executable, "-m", *(launcher or ("clipkit",)), "fit", str(config), f"run={folder}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(folder, step, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").is_file() and len(record_safely(folder)) >= step:
            return
        if process.poll() is not None:
            raise AssertionError(f"ended early with {process.returncode}:\n{process.stdout.read()}")
        time.sleep(0.005)
    raise AssertionError("no progress in 120 s")


def record_safely(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_run_leaves_what_the_readme_says(config, tmp_path):
    run = clipkit.fit(config, {"run": str(tmp_path / "run"), "logging.csv": True})
    assert (run.step, run.steps, run.code) == (STEPS, STEPS, 0)
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "command.txt", "environment.json", "metrics.jsonl", "metrics.csv", "checkpoints"} <= names
    lines = record(run.folder)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["samples"] for line in lines] == [16 * step for step in range(1, STEPS + 1)]
    wanted = {
        "train/loss",
        "train/loss/infonce",
        "train/logit_scale",
        "train/lr",
        "train/grad_norm",
        "train/samples_per_second",
        "train/data_wait",
        "train/text_length",
        "train/text_tokens",
    }
    assert wanted <= set(lines[0])
    assert 5 <= lines[0]["train/text_length"] <= 6  # start, square, number, one or two digits, end
    assert lines[0]["train/text_tokens"] == 0.5  # eight of sixteen
    assert lines[0]["train/lr"] == pytest.approx(5e-4)
    assert lines[0]["train/logit_scale"] == pytest.approx(1 / 0.07, rel=1e-2)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert [path.name for path in steps(run.folder / "checkpoints")] == ["12", "8", "4"]
    encoder = clipkit.load(run.folder)
    image = torch.zeros(3, 20, 31, dtype=torch.uint8)
    assert encoder.encode_image([image]).norm(dim=1).item() == pytest.approx(1, abs=1e-5)
    assert encoder.similarity(encoder.encode_image([image]), encoder.encode_text(["a", "b"])).shape == (1, 2)
    assert encoder.logit_scale == pytest.approx(lines[-1]["train/logit_scale"], rel=1e-5)


def test_stopped_killed_and_resumed_it_ends_with_the_bits_of_an_uninterrupted_run(config, tmp_path, capsys):
    whole = clipkit.fit(config, {"run": str(tmp_path / "whole")}).folder
    broken = tmp_path / "broken"
    process = start(config, broken)
    wait_for_step(broken, 2, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 75, said
    stopped = json.loads((broken / "stopped.json").read_text())
    assert stopped["reason"] == "SIGTERM"
    assert stopped["step"] == int(newest(broken / "checkpoints")[0].name)
    assert len(record(broken)) == stopped["step"]  # not one step is lost
    process = start(config, broken)
    wait_for_step(broken, 9, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert int(newest(broken / "checkpoints")[0].name) < STEPS
    finished = clipkit.fit(config, {"run": str(broken)})
    assert finished.code == 0
    assert not (broken / "stopped.json").exists()
    assert final_hash(broken) == final_hash(whole)
    assert [(line["step"], line["train/loss"]) for line in record(broken)] == [
        (line["step"], line["train/loss"]) for line in record(whole)
    ]
    assert keys(broken) == keys(whole)
    capsys.readouterr()
    assert command_line(["fit", str(config), f"run={broken}"]) == 0
    assert "is finished" in capsys.readouterr().err


def test_two_ranks_are_one_training_however_they_are_started(config, tmp_path):
    alone = clipkit.fit(config, {"run": str(tmp_path / "alone")}).folder
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    process = start(config, ours, "trainer.devices=2")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "clipkit")
    process = start(config, theirs, "trainer.devices=auto", launcher=launcher)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    want = record(alone)
    for folder in (ours, theirs):
        got = record(folder)
        assert [line["step"] for line in got] == [line["step"] for line in want]
        for mine, line in zip(got, want, strict=True):
            assert mine["train/loss"] == pytest.approx(line["train/loss"], rel=1e-5)
            assert mine["train/grad_norm"] == pytest.approx(line["train/grad_norm"], rel=1e-3)
        first, second, everything = keys(folder, 0), keys(folder, 1), keys(alone)
        assert {p: sorted(first[p] + second[p]) for p in first} == {p: sorted(everything[p]) for p in everything}
        assert all(len(first[p]) == len(second[p]) == 8 for p in first)


def test_a_run_goes_on_with_another_number_of_ranks(config, tmp_path):
    whole = clipkit.fit(config, {"run": str(tmp_path / "whole")}).folder
    other = clipkit.fit(config, {"run": str(tmp_path / "other")}).folder
    for name in ("12", "8"):
        (other / "checkpoints" / name / "manifest.json").unlink()  # as if it had been killed after step 4
    process = start(config, other, "trainer.devices=2")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "passed over" in said
    for mine, line in zip(record(other), record(whole), strict=True):
        assert mine["train/loss"] == pytest.approx(line["train/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optim.lr=0.5"], ["optim.lr", "0.001", "0.5", "run=DIR"]),
        (["--resume", "never"], ["holds a run already", "run=DIR"]),
        (["--resume", "nowhere"], ["no checkpoint there"]),
        (["trainer.micro_batchs=4"], ["micro_batchs", "micro_batch", "command line"]),
        (["trainer.accelerator=gpu"], ["no CUDA device"]),
    ],
)
def test_bad_input_is_one_paragraph_and_code_2_and_changes_nothing(finished_run, arguments, words, capsys):
    config, folder = finished_run
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert command_line(["fit", str(config), f"run={folder}", *arguments]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_named_checkpoint_must_fit_the_run(finished_run, tmp_path, tiny_model, capsys):
    config, folder = finished_run
    checkpoint, run = folder / "checkpoints" / "4", tmp_path / "run"

    def refused(*arguments):
        capsys.readouterr()
        assert command_line(["fit", str(config), f"run={run}", *arguments]) == 2
        assert not run.exists()
        return capsys.readouterr().err

    wider = json.loads(tiny_model.read_text()) | {"embed_dim": 24}
    tiny_model.write_text(json.dumps(wider))
    said = refused("--resume", str(checkpoint), f"model={tiny_model}")
    assert "holds another model: 2 of" in said
    assert "(32, 16) there and (32, 24) here" in said
    last = folder / "checkpoints" / str(STEPS)
    assert f"step {STEPS} is the end of a run" in refused("--resume", str(last), "trainer.length=14 steps")
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not what was written")
    assert "not usable" in refused("--resume", str(tmp_path / "broken"))
    longer = clipkit.fit(config, {"run": str(run), "trainer.length": "14 steps"}, resume=str(checkpoint))
    assert (longer.step, longer.code) == (14, 0)


def test_a_run_folder_that_cannot_be_made_is_bad_input(config, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert command_line(["fit", str(config), f"run={tmp_path / 'file' / 'run'}"]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_the_budget_holds_at_the_end_of_a_run_shorter_than_a_window(tmp_path, tiny_model, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    write_shard(folder / "0.tar", 64, captions=["" if i % 8 == 0 else f"square {i}" for i in range(64)])
    config = write_config(tmp_path, tiny_model, folder, logging={"every": "50 steps"})
    assert command_line(["fit", str(config), f"run={tmp_path / 'run'}"]) == 1
    assert "data.bad_samples" in capsys.readouterr().err


def test_a_bias_that_the_loss_does_not_use_stops_no_second_rank(config, tmp_path, tiny_model):
    tiny_model.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"init_logit_bias": -10.0}))
    process = start(config, tmp_path / "run", "trainer.devices=2", "trainer.length=2 steps")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert clipkit.load(tmp_path / "run").logit_bias == -10


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    from tests.conftest import TINY_MODEL

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.json").write_text(json.dumps(TINY_MODEL))
    (folder / "shards").mkdir()
    write_shard(folder / "shards" / "0.tar", 64)
    config = write_config(folder, folder / "tiny.json", folder / "shards")
    clipkit.fit(config, {"run": str(folder / "run")})
    return config, folder / "run"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.train.squares.shards": "nowhere/{0..3}.tar"}, ["nowhere"]),
        ({"data.batch_size": 1000}, ["64", "1,000"]),
        ({"model": "ViT-B-3"}, ["ViT-B-3", "did you mean"]),
        ({"data.train.squares.fields": "{image: png, text: caption}"}, ["squares", "caption", "txt"]),
        ({"data.train.squares.fields": "{image: jpg, text: txt}"}, ["squares", "jpg", "png"]),
        ({"evaluate.tasks.t": "{kind: zero_shot, data: nowhere}"}, ["nowhere", "evaluation set"]),
        ({"data.val.v.shards": "SHARDS/00001.tar", "data.batch_size": 32}, ["data.val", "24 pairs", "32"]),
    ],
)
def test_data_and_model_that_cannot_work_are_named_before_training(config, tmp_path, change, words, capsys):
    arguments = [f"{key}={value}".replace("SHARDS", str(tmp_path / "shards")) for key, value in change.items()]
    assert command_line(["fit", str(config), f"run={tmp_path / 'run'}", *arguments]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said, said
    assert not (tmp_path / "run").exists(), "the corrected command would be refused for another configuration"


def test_a_batch_that_is_no_multiple_of_the_ranks_is_refused_with_the_cure(config, tmp_path):
    process = start(config, tmp_path / "run", "trainer.devices=2", "data.batch_size=15")
    said = process.communicate()[0]
    assert process.returncode == 2, said
    assert "15" in said
    assert "is no multiple of the 2 ranks" in said
    assert "take 14 or 16" in said
    assert "Traceback" not in said


def test_too_many_bad_samples_stop_the_run_with_code_1(tmp_path, tiny_model, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    write_shard(folder / "0.tar", 64, captions=["" if i % 8 == 0 else f"square {i}" for i in range(64)])
    config = write_config(tmp_path, tiny_model, folder)
    assert command_line(["fit", str(config), f"run={tmp_path / 'run'}"]) == 1
    said = capsys.readouterr().err
    assert "data.bad_samples" in said
    assert "substitute" in said
    run = clipkit.fit(config, {"run": str(tmp_path / "tolerant"), "data.bad_samples": 0.5})
    assert run.step == STEPS
    said = capsys.readouterr().err
    (epochs,) = json.loads((run.folder / "data.json").read_text()).values()
    assert all(epoch["present"] == epoch["filtered"] + epoch["remainder"] + epoch["planned"] for epoch in epochs)
    assert all(epoch["seen"] == epoch["trained"] + sum(epoch["bad"].values()) for epoch in epochs)
    assert sum(epoch["seen"] for epoch in epochs) == 16 * STEPS
    bad = sum(epoch["bad"]["no_caption"] for epoch in epochs)
    assert 16 <= bad <= 24  # an eighth of three epochs
    assert f"{bad} bad ({bad} " in said


def test_evaluation_runs_inside_fit_and_decides_the_best(tmp_path, tiny_model, shards):
    photos = tmp_path / "photos"
    import tarfile

    with tarfile.open(shards / "00001.tar") as tar:
        for i, member in enumerate(m for m in tar.getmembers() if m.name.endswith("png")):
            place = photos / ("odd" if i % 2 else "even")
            place.mkdir(parents=True, exist_ok=True)
            (place / Path(member.name).name).write_bytes(tar.extractfile(member).read())
    config = write_config(
        tmp_path,
        tiny_model,
        shards,
        evaluate={"every": "6 steps", "tasks": {"parity": {"kind": "zero_shot", "data": str(photos)}}},
        checkpoint={"every": "6 steps", "keep_last": 1, "keep_best": 1, "best": "val/parity/acc1"},
    )
    overrides = {"run": str(tmp_path / "run"), "data.val": {"squares": {"shards": f"{shards}/00000.tar"}}}
    run = clipkit.fit(config, overrides)
    evaluated = [line for line in record(run.folder) if "val/parity/acc1" in line]
    assert [line["step"] for line in evaluated] == [6, 12]
    assert evaluated[-1]["val/loss"] > 0
    assert run.figures["val/parity/acc1"] == evaluated[-1]["val/parity/acc1"]
    found = clipkit.evaluate(run.folder, data=photos, task="zero_shot", seed=3)  # as the run
    for name in ("acc1", "acc1_ci", "mean_per_class_recall_ci"):
        assert found[name] == evaluated[-1][f"val/parity/{name}"]
    clipkit.export(run.folder, "open_clip", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    low, high = found["acc1_ci"]
    interval = f"{100 * found['acc1']:.2f} % | {100 * low:.2f} to {100 * high:.2f} %"
    assert f"| `parity` | `acc1` | {interval} | `metrics.jsonl, step 12` |" in card


def test_allowed_lightning_keys_reach_the_trainer(config, tmp_path):
    keys = ("enable_progress_bar", "enable_model_summary", "benchmark", "detect_anomaly")
    overrides = [f"trainer.lightning.{key}=false" for key in keys]
    outcome = clipkit.fit(config, [*overrides, "trainer.length=2 steps", f"run={tmp_path / 'run'}"])
    assert (outcome.code, outcome.step) == (0, 2)


def test_a_warm_up_that_never_ends_is_said(config, tmp_path, capsys):
    for length, said in (("1 epochs", True), ("2 epochs", False)):
        clipkit.fit(config, {"run": str(tmp_path / length), "trainer.length": length, "optim.warmup": "4 steps"})
        words = (
            "warning: optim.warmup (4 steps) is as long as the run or longer: the learning rate never gets to optim.lr"
        )
        assert (words in capsys.readouterr().err) is said


def test_the_last_window_is_logged_however_short(config, tmp_path):
    folder = tmp_path / "run"
    clipkit.fit(config, {"trainer.length": "3 steps", "logging.every": "2 steps", "run": str(folder)})
    lines = record(folder)
    assert [line["step"] for line in lines] == [2, 3]
    assert lines[-1]["train/grad_norm"] != lines[0]["train/grad_norm"]


def test_a_run_stops_early_once_and_is_finished(tmp_path, tiny_model, shards, capsys):
    config = write_config(
        tmp_path,
        tiny_model,
        shards,
        evaluate={"every": "2 steps", "stop": {"monitor": "val/loss", "patience": 2, "min_delta": 100.0}},
    )
    overrides = {"run": str(tmp_path / "run"), "data.val": {"squares": {"shards": f"{shards}/00000.tar"}}}
    run = clipkit.fit(config, overrides)
    assert (run.step, run.stopped, run.code) == (
        6,
        None,
        0,
    )  # the first evaluation is the best, two more are not better
    assert "val/loss did not get better in 2 evaluations" in run.early
    assert json.loads((run.folder / "stopped.json").read_text())["code"] == 0
    assert (run.folder / "checkpoints" / "6" / "manifest.json").is_file()
    again = clipkit.fit(config, overrides)
    assert (again.step, again.early) == (6, run.early)
    assert "is finished at step 6 of 12, early stop" in capsys.readouterr().err
    longer = clipkit.fit(config, overrides | {"evaluate.stop": None})
    assert (longer.step, longer.early) == (12, None)
