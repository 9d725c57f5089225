import json

import pytest

import clipkit
from tests.test_training import write_config


def test_tensorboard_and_offline_wandb_get_the_figures_and_a_resumed_run_is_the_same_run(
    tmp_path, tiny_model, shards, monkeypatch
):
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = write_config(tmp_path, tiny_model, shards)
    folder = tmp_path / "run"
    wandb = {"logging.wandb": {"project": "clipkit-tests", "mode": "offline"}, "logging.tensorboard": True}
    overrides = {"run": str(folder), "trainer.length": "4 steps", "checkpoint.every": "2 steps", **wandb}
    clipkit.fit(config, overrides)
    identity = json.loads((folder / "wandb.json").read_text())["id"]
    assert any(identity in path.name for path in (folder / "wandb").iterdir())
    import wandb as client

    assert client.run is None  # an open one would take in what this process trains next
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert events.Scalars("train/loss")[-1].value == pytest.approx(lines[-1]["train/loss"], rel=1e-6)
    (folder / "checkpoints" / "4" / "manifest.json").unlink()
    clipkit.fit(config, overrides)
    assert json.loads((folder / "wandb.json").read_text())["id"] == identity
