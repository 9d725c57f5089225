"""FSDP2 on two real gloo ranks against DDP and one process: curves, weights, moments, averages; checkpoints that each goes on from."""

import pytest
import torch

import clipkit
from clipkit.checkpoint import read_checkpoint, verify
from tests.test_training import config, record, start, write_config  # noqa: F401  (config is a fixture)

RANK_JOBS = __file__.replace("test_fsdp2.py", "fsdp2_jobs.py")


def fit(config, folder, strategy, devices, *more):  # noqa: F811
    process = start(config, folder, f"trainer.strategy={strategy}", f"trainer.devices={devices}", *more)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return folder


def agree(one, two, step):
    """Weights, moments and averages of two checkpoints, tensor by tensor; Adam magnifies rounding where a gradient is nearly zero."""
    mine, theirs = (read_checkpoint(folder / "checkpoints" / str(step)) for folder in (one, two))
    assert verify(one / "checkpoints" / str(step)) is None
    torch.testing.assert_close(mine.model, theirs.model, rtol=1e-3, atol=1e-4)
    (a,), (b,) = mine.state["optimizer_states"], theirs.state["optimizer_states"]
    assert [group["params"] for group in a["param_groups"]] == [group["params"] for group in b["param_groups"]]
    torch.testing.assert_close(a["state"], b["state"], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(mine.state["callbacks"]["Ema"], theirs.state["callbacks"]["Ema"], rtol=1e-3, atol=1e-4)
    for x, y in zip(record(one), record(two), strict=True):
        assert x["train/loss"] == pytest.approx(y["train/loss"], rel=1e-4)
        assert x["train/grad_norm"] == pytest.approx(y["train/grad_norm"], rel=1e-3)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_unequal_rows_and_lengths_neither_hang_nor_change_the_gradient(two_ranks, tiny_model, micro_batch):
    for worst, tensors in two_ranks.run(RANK_JOBS, "sharded_gradients", tiny_model, micro_batch):
        assert worst < 1e-9
        assert tensors > 20


def test_a_run_under_fsdp2_is_the_run_under_ddp_and_goes_on_under_either(config, tmp_path):  # noqa: F811
    common = ("optim.ema=0.9", "trainer.micro_batch=3")
    whole = fit(config, tmp_path / "one", "ddp", 1, *common)
    sharded = fit(config, tmp_path / "sharded", "fsdp2", 2, *common)
    agree(sharded, whole, 12)
    assert clipkit.load(sharded).encode_text(["a square"]).norm().item() == pytest.approx(1, abs=1e-5)
    for strategy in ("fsdp2", "ddp"):  # from step 8 of the sharded run
        for step in (4, 12):
            (sharded / "checkpoints" / str(step) / "manifest.json").unlink()
        fit(config, sharded, strategy, 2, *common)
        lines = {line["step"]: line for line in record(sharded)}
        assert lines[12]["train/loss"] == pytest.approx(record(whole)[-1]["train/loss"], rel=1e-4)


def test_compile_is_refused(config):  # noqa: F811
    with pytest.raises(ValueError, match="does not go with trainer.strategy=fsdp2"):
        clipkit.fit(config, {"trainer.strategy": "fsdp2", "trainer.compile": True})
