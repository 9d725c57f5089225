"""Whole runs whose data become others half-way: refused, or gone on with the weights at the beginning of a new plan."""

import json
import shutil
import signal

import pytest

import clipkit
from clipkit.checkpoint import read_checkpoint, weight_hash
from clipkit.cli.main import run as command_line
from tests.conftest import write_shard
from tests.test_training import STEPS, config, keys, record, start, wait_for_step  # noqa: F401 - config is a fixture


@pytest.fixture
def left_at_4(config, tmp_path, shards):  # noqa: F811
    """A run of which all after step 4 is lost, and more shards for it."""
    write_shard(shards / "00002.tar", 40, first=64)
    folder = clipkit.fit(
        config, {"run": str(tmp_path / "run"), "data.train.squares.shards": f"{shards}/0000[01].tar"}
    ).folder
    for name in ("8", "12"):
        shutil.rmtree(folder / "checkpoints" / name)
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def final(folder):
    return weight_hash(read_checkpoint(folder / "checkpoints" / str(STEPS)).model)


def test_other_data_are_refused_and_nothing_is_changed(left_at_4, config, shards, capsys):  # noqa: F811
    before = contents(left_at_4)
    assert command_line(["fit", str(config), f"run={left_at_4}"]) == 2
    said = capsys.readouterr().err
    assert "data.train.squares.shards" in said
    assert "--allow-mismatch" in said
    assert contents(left_at_4) == before
    old = f"data.train.squares.shards={shards}/0000[01].tar"
    (shards / "00001.tar").unlink()
    write_shard(shards / "00001.tar", 30, first=40)  # the same configuration, but other shards under it
    assert command_line(["fit", str(config), f"run={left_at_4}", old]) == 2
    said = capsys.readouterr().err
    assert "data.sources.squares.shards was" in said
    assert "--allow-mismatch" in said
    assert contents(left_at_4) == before


def test_what_is_no_data_is_never_allowed(left_at_4, config, capsys):  # noqa: F811
    before = contents(left_at_4)
    for other in ("optim.lr=0.5", "losses.infonce.duplicates=negatives", "trainer.micro_batch=8"):
        assert command_line(["fit", str(config), f"run={left_at_4}", "--allow-mismatch", other]) == 2
        assert other.split("=")[0] in capsys.readouterr().err
    assert contents(left_at_4) == before


def test_allowed_the_weights_go_on_and_the_new_plan_begins(left_at_4, config, tmp_path, capsys):  # noqa: F811
    shutil.copytree(left_at_4, tmp_path / "killed")
    old_keys, old_record = keys(left_at_4), record(left_at_4)
    run = clipkit.fit(config, {"run": str(left_at_4)}, allow_mismatch=True)
    said = capsys.readouterr().err
    assert (run.step, run.code) == (STEPS, 0)
    for words in ("data.train.squares.shards", "data.sources.squares.shards was", "position 0 of a new plan"):
        assert words in said
    assert "the first 4 steps (64 samples, 0 of them bad) were of another plan" in said
    assert record(run.folder)[:4] == old_record[:4]
    assert [line["step"] for line in record(run.folder)] == list(range(1, STEPS + 1))
    fresh = clipkit.fit(config, {"run": str(tmp_path / "fresh"), "trainer.length": "8 steps"}).folder
    traced = [json.loads(line) for line in (run.folder / "samples.rank0.after_4.jsonl").read_text().splitlines()]
    assert {line["position"]: line["keys"] for line in traced} == keys(fresh)
    assert keys(run.folder) == old_keys
    (epochs,) = json.loads((run.folder / "data.json").read_text()).values()
    assert sum(epoch["seen"] for epoch in epochs) == 16 * (STEPS - 4)

    killed = (
        tmp_path / "killed"
    )  # the same again, killed on the way: it resumes with the same bits, the flag given again or not
    (killed / "metrics.jsonl").unlink()  # its lines are not what to wait for
    process = start(config, killed, "--allow-mismatch")
    wait_for_step(killed, 5, process)  # five lines from step 5 on: behind the checkpoint of step 8
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert clipkit.fit(config, {"run": str(killed)}).step == STEPS
    assert final(killed) == final(run.folder)
    assert (killed / "samples.rank0.after_4.jsonl").read_bytes() == (
        run.folder / "samples.rank0.after_4.jsonl"
    ).read_bytes()


def test_a_named_checkpoint_of_another_configuration_is_said_to_be_one(left_at_4, config, shards, tmp_path, capsys):  # noqa: F811
    capsys.readouterr()
    changes = {
        "optim.lr": 2e-3,
        "optim.weight_decay": 0.5,
        "optim.betas": [0.5, 0.6],
        "optim.eps": 1e-3,
        "data.train.squares.shards": f"{shards}/0000[01].tar",
    }
    checkpoint = str(left_at_4 / "checkpoints" / "4")
    branch = clipkit.fit(config, {"run": str(tmp_path / "branch")} | changes, resume=checkpoint)
    said = capsys.readouterr().err
    assert "optim.lr: 0.001 -> 0.002\n" in said
    for words in ("optim.weight_decay: 0.2 -> 0.5", "optim.betas: unset -> [0.5, 0.6]", "optim.eps: unset -> 0.001"):
        assert f"{words} (the checkpoint's is taken)" in said
    (last,) = read_checkpoint(branch.folder / "checkpoints" / str(STEPS)).state["optimizer_states"]
    for group in last["param_groups"]:  # what was said is so
        assert group["weight_decay"] in (0.0, 0.2)
        assert (group["betas"], group["eps"]) == ((0.9, 0.98), 1e-6)
    assert record(branch.folder)[0]["train/lr"] == pytest.approx(2 * record(left_at_4)[4]["train/lr"])


def test_ranks_that_are_started_are_told(left_at_4, config):  # noqa: F811
    process = start(config, left_at_4, "--allow-mismatch", "trainer.devices=2", "seed=4")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "seed: 3 -> 4" in said
    assert "data.seed was 3 and is 4" in said
    assert record(left_at_4)[-1]["step"] == STEPS
