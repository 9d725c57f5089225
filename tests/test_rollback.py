"""Skip, then roll back, then stop: whole runs, held against runs that resumed with the same steps left out."""

import hashlib
import json
import shutil

import pytest
import torch

import clipkit
from clipkit.checkpoint import read_checkpoint
from tests.test_guard import Spoiler
from tests.test_training import config, final_hash, keys, record  # noqa: F401  (config is a fixture)

GUARD = {"guard.margin": 1, "logging.every": "3 steps", "optim.ema": 0.5}


def spoiler(*steps):
    return {"spoiler": lambda scale_of: Spoiler({16 * (step - 1) for step in steps})}


def rewrite(checkpoint, **guard):
    """Give a checkpoint another account of what is left out, and its manifest the new hash."""
    info = checkpoint / "state.json"
    state = json.loads(info.read_text())
    state["lightning"]["guard"] |= guard
    info.write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    data = info.read_bytes()
    manifest["files"]["state.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_a_roll_back_ends_as_a_resumed_run_that_leaves_out_the_same_steps(config, tmp_path, capsys):  # noqa: F811
    run = clipkit.fit(config, GUARD | {"run": str(tmp_path / "run")}, losses=spoiler(6, 7, 8))
    said = capsys.readouterr().err
    assert "roll-back 1 of 2" in said
    assert "steps 5 to 9 are left out" in said
    assert "5 of 12 steps reached no weights" in said
    assert [line["step"] for line in record(run.folder)] == [3, 6, 9, 12]  # none twice
    assert sorted(keys(run.folder)) == [16 * step for step in range(12)]
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    for step in (8, 12):
        shutil.rmtree(other / "checkpoints" / str(step))
    rewrite(other / "checkpoints" / "4", left_out=[[5, 9]], rollbacks=1)
    again = clipkit.fit(config, GUARD | {"run": str(other)}, losses=spoiler(6, 7, 8))
    assert final_hash(again.folder) == final_hash(run.folder)
    one, two = (read_checkpoint(folder / "checkpoints" / "12") for folder in (run.folder, other))
    assert one.info["lightning"]["guard"] == two.info["lightning"]["guard"] == {"left_out": [[5, 9]], "rollbacks": 1}
    assert one.state["callbacks"]["ReportSkipped"]["skipped"] == two.state["callbacks"]["ReportSkipped"]["skipped"] == 5
    for name, average in one.state["callbacks"]["Ema"]["weights"].items():
        assert torch.equal(average, two.state["callbacks"]["Ema"]["weights"][name])
    for number, moments in one.state["optimizer_states"][0]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, two.state["optimizer_states"][0]["state"][number][name])


def test_without_a_checkpoint_or_after_enough_roll_backs_the_run_stops(config, tmp_path):  # noqa: F811
    with pytest.raises(RuntimeError, match=r"no checkpoint from before step 1.*checkpoint\.every.*optim\.lr"):
        clipkit.fit(config, GUARD | {"run": str(tmp_path / "one")}, losses=spoiler(1, 2, 3))
    with pytest.raises(RuntimeError, match=r"after 1 roll-backs \(guard\.rollbacks=1\)"):
        clipkit.fit(
            config,
            GUARD | {"run": str(tmp_path / "two"), "guard.rollbacks": 1, "guard.consecutive": 2},
            losses=spoiler(*range(5, 13)),
        )


def test_a_checkpoint_between_two_looks_keeps_the_count(config, tmp_path):  # noqa: F811
    wide = {"logging.every": "50 steps", "checkpoint.every": "2 steps"}
    run = clipkit.fit(config, wide | {"run": str(tmp_path / "run")}, losses=spoiler(4, 7))
    for step in (8, 10, 12):
        (run.folder / "checkpoints" / str(step) / "manifest.json").unlink()
    again = clipkit.fit(config, wide | {"run": str(tmp_path / "run")}, losses=spoiler(4, 7))
    assert read_checkpoint(again.folder / "checkpoints" / "12").state["callbacks"]["ReportSkipped"]["skipped"] == 2
