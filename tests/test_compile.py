"""Compiled towers give the losses of towers as they are, and checkpoints that say nothing of it."""

import shutil

import pytest
from safetensors import safe_open

import clipkit
from tests.test_training import config, record  # noqa: F401  (config is a fixture)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_towers_train_the_same(config, tmp_path):  # noqa: F811
    length = {"trainer.length": "3 steps"}
    plain = clipkit.fit(config, length | {"run": str(tmp_path / "plain")})
    compiled = clipkit.fit(config, length | {"run": str(tmp_path / "compiled"), "trainer.compile": True})
    for mine, theirs in zip(record(compiled.folder), record(plain.folder), strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
    with safe_open(compiled.folder / "checkpoints" / "3" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "_orig_mod" in name]  # noqa: SIM118  (safe_open is no mapping)
