"""Spikes in whole runs: what reaches the weights, bit for bit."""

import clipkit
from clipkit.checkpoint import read_checkpoint, weight_hash
from clipkit.losses.base import Loss
from tests.test_training import config  # noqa: F401  (a fixture)

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
