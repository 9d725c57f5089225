import pytest
import torch

import clipkit
from clipkit.losses.base import Loss
from clipkit.plugins import check_plugin, load_plugin

PLUGIN = """
from clipkit.losses.base import Loss


class Alignment(Loss):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, features, batch):
        return (features["image"].pooled - features["text"].pooled).square().sum(1).mean()


LOSSES = {"alignment": lambda scale_of: Alignment(scale_of(("image", "text")).forward)}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(PLUGIN)
    (tmp_path / "empty_plugin.py").write_text("LOSSES = {}")
    monkeypatch.syspath_prepend(tmp_path)
    return "my_losses"


def test_a_plugin_brings_a_loss_and_the_run_remembers_it(module, tmp_path, tiny_model, shards):
    from tests.test_training import record, write_config

    config = write_config(tmp_path, tiny_model, shards)
    run = clipkit.fit(config, {"run": str(tmp_path / "run"), "trainer.length": "3 steps"}, plugin=module)
    line = record(run.folder)[-1]
    assert line["train/loss"] == pytest.approx(line["train/loss/infonce"] + line["train/loss/alignment"], rel=1e-6)
    with pytest.raises(ValueError, match="made with the plugin my_losses; pass --plugin my_losses"):
        clipkit.fit(config, {"run": str(tmp_path / "run"), "trainer.length": "3 steps"})


def test_own_losses_enter_through_python(tmp_path, tiny_model, shards):
    from tests.test_training import record, write_config

    class Constant(Loss):
        def forward(self, features, batch):
            return features["image"].pooled.sum() * 0 + torch.tensor(2.0)

    config = write_config(tmp_path, tiny_model, shards)
    overrides = {"run": str(tmp_path / "run"), "trainer.length": "2 steps"}
    line = record(clipkit.fit(config, overrides, losses={"two": lambda scale_of: Constant()}).folder)[0]
    assert line["train/loss/two"] == 2
    with pytest.raises(ValueError, match="torchrun"):
        clipkit.fit(config, overrides | {"trainer.devices": 2}, losses={"two": lambda scale_of: Constant()})


def test_what_is_no_plugin_is_named(module):
    with pytest.raises(ValueError, match="PYTHONPATH"):
        load_plugin("no_such_module")
    with pytest.raises(ValueError, match="has no LOSSES"):
        load_plugin("empty_plugin")
    assert check_plugin(None, None) is None
    plugin = load_plugin(module)
    assert "SHA-256" in check_plugin({"module": module, "sha256": "0"}, plugin)
    with pytest.raises(ValueError, match="leave --plugin out"):
        check_plugin(None, plugin)
