"""Parts of a run that die or hang: a loader's process, a collective that one rank does not enter."""

import os
import signal
from pathlib import Path

import pytest

import clipkit
from clipkit.data.datamodule import ShardDataModule
from tests.test_training import STEPS, final_hash, keys, record, write_config


def test_a_loader_process_that_is_killed_is_named_with_its_shards_and_the_run_goes_on(
    tmp_path, tiny_model, shards, monkeypatch
):
    from clipkit.data.in_flight import WorkerDied

    config = write_config(tmp_path, tiny_model, shards)
    whole = clipkit.fit(config, {"run": str(tmp_path / "whole")}).folder
    real = ShardDataModule.advance

    def advance(self, batch):
        if batch["position"] == 16 * 5:
            (loader,) = self._loaders
            for worker in loader._iterator._workers:
                os.kill(worker.pid, signal.SIGKILL)
        real(self, batch)

    monkeypatch.setattr(ShardDataModule, "advance", advance)
    broken = tmp_path / "broken"
    options = {"run": str(broken), "data.workers": 2, "data.start_method": "fork"}
    with pytest.raises(
        WorkerDied, match=r"loader process died.*from position \d+ on: shards .*0000\d\.tar.* keys 000\d\d"
    ) as told:
        clipkit.fit(config, options)
    assert "goes on from the last checkpoint" in str(told.value)
    monkeypatch.setattr(ShardDataModule, "advance", real)
    assert clipkit.fit(config, options).step == STEPS
    assert final_hash(broken) == final_hash(whole)
    assert keys(broken) == keys(whole)
    losses = [[(line["step"], line["train/loss"]) for line in record(folder)] for folder in (broken, whole)]
    assert losses[0] == losses[1]


def test_a_collective_ends_after_the_time_that_was_set(two_ranks):
    assert two_ranks.run(Path(__file__).with_name("timeout_jobs.py"), "wait_in_vain") == ["timed out", ""]
