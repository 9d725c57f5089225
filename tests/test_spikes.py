"""Spikes in whole runs: what reaches the weights, bit for bit."""

import shutil

import pytest

import clipkit
from clipkit.checkpoint import read_checkpoint, steps, weight_hash
from clipkit.losses.base import Loss
from tests.test_rollback import rewrite
from tests.test_training import config, final_hash, keys, record  # noqa: F401  (a fixture)

LENGTH = {"trainer.length": "32 steps", "checkpoint.every": "32 steps", "logging.every": "8 steps"}


class Jump(Loss):
    """No loss, but step 30 adds a gradient of this size."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, features, batch):
        return features["image"].pooled.sum() * (self.factor if batch["position"] == 16 * 29 else 0.0)


def trained(config, folder, factor, spikes):  # noqa: F811
    overrides = LENGTH | {"run": str(folder), "guard.spikes": spikes}
    run = clipkit.fit(config, overrides, losses={"jump": lambda scale_of: Jump(factor)})
    return weight_hash(read_checkpoint(run.folder / "checkpoints" / "32").model)


def test_a_spike_that_is_skipped_leaves_the_weights_of_a_run_without_that_step(config, tmp_path, capsys):  # noqa: F811
    skipped = trained(config, tmp_path / "skip", 1e4, "skip")
    assert "(the first: step 30)" in capsys.readouterr().err
    assert skipped == trained(config, tmp_path / "nan", float("nan"), "ignore")


def test_a_spike_is_told_where_it_only_warns(config, tmp_path, capsys):  # noqa: F811
    trained(config, tmp_path / "warn", 1e4, "warn")
    assert "of step 30 is" in capsys.readouterr().err


def cut(run, folder, step):
    """A copy of a run that was killed after the checkpoint of a step."""
    shutil.copytree(run, folder)
    for path in steps(folder / "checkpoints"):
        if int(path.name) > step:
            shutil.rmtree(path)
    return folder


@pytest.mark.parametrize("mode", ["skip", "rollback"])
def test_a_spike_means_the_same_after_an_interruption(config, tmp_path, capsys, mode):  # noqa: F811
    overrides = LENGTH | {"guard.spikes": mode, "guard.margin": 1, "checkpoint.every": "4 steps"}
    losses = {"jump": lambda scale_of: Jump(1e4)}
    run = clipkit.fit(config, overrides | {"run": str(tmp_path / "run")}, losses=losses).folder
    said = capsys.readouterr().err
    if mode == "rollback":
        assert "the gradient norm of step 30 is" in said
        assert "roll-back 1 of 2" in said
        assert "steps 29 to 31 are left out" in said
    else:
        assert "(the first: step 30); 1 of 32 steps so far trained nothing" in said
    assert [line["step"] for line in record(run)] == [8, 16, 24, 32]
    assert sorted(keys(run)) == [16 * step for step in range(32)]
    other = cut(run, tmp_path / "other", 20)  # in the middle of a window, before enough steps are known
    clipkit.fit(config, overrides | {"run": str(other)}, losses=losses)
    assert final_hash(other, 32) == final_hash(run, 32)
    states = [read_checkpoint(folder / "checkpoints" / "32") for folder in (run, other)]
    assert len({str(found.info["lightning"]["guard"]) for found in states}) == 1
    assert states[0].state["callbacks"]["ReportSkipped"]["skipped"] == (3 if mode == "rollback" else 1)
    if mode == "rollback":  # and it is what a run does that knew which steps to leave out
        told = cut(run, tmp_path / "told", 28)
        rewrite(told / "checkpoints" / "28", left_out=[[29, 31]], rollbacks=1)
        clipkit.fit(config, overrides | {"run": str(told)}, losses=losses)
        assert final_hash(told, 32) == final_hash(run, 32)
