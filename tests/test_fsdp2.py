"""FSDP2 on two real gloo ranks against DDP and one process: curves, weights, moments, averages; checkpoints that each goes on from."""

import json
import subprocess
import sys

import pytest
import torch

import clipkit
from clipkit.checkpoint import read_checkpoint, verify
from tests.conftest import TINY_MODEL, Ranks
from tests.test_training import config, record, write_config  # noqa: F401  (config is a fixture)

RANK_JOBS = __file__.replace("test_fsdp2.py", "fsdp2_jobs.py")
VIEWS = {"image_view1": {"flip": 0.5}, "image_view2": {"grayscale": 0.5}}
SLIP = {"infonce": {"kind": "infonce"}, "slip": {"kind": "slip", "hidden": 24, "out": 8}}
EACH = {  # what runs three steps under either strategy and must agree
    "locked": {"model.lock": "image", "optim.layer_decay": 0.5},
    "bf16": {"trainer.precision": "bf16-mixed"},
    "heads": {"data.views": VIEWS, "trainer.micro_batch": 3},  # and the gradient of a step is no number on one rank
}

SPOILER = """
from clipkit import distributed
from clipkit.losses.base import Loss


class Spoiler(Loss):
    def forward(self, features, batch):
        bad = batch["position"] == {position} and distributed.rank() == {rank}
        return features["image"].pooled.sum() * (float("nan") if bad else 0.0)


LOSSES = {{"spoiler": lambda scale_of: Spoiler()}}
"""


def agree(one, two, step, *, since=0, tolerance=1e-5):
    """Weights, moments and averages of two checkpoints and the curves up to there.

    A tensor's largest difference is held against its largest entry; Adam divides by the root of the second moment, so that a gradient
    which is zero but for rounding (the bias of attention's keys) moves the weight by some rounding of the learning rate.
    """
    mine, theirs = (read_checkpoint(folder / "checkpoints" / str(step)) for folder in (one, two))
    assert verify(one / "checkpoints" / str(step)) is None
    torch.testing.assert_close(mine.model, theirs.model, rtol=0, atol=tolerance)
    (a,), (b,) = mine.state["optimizer_states"], theirs.state["optimizer_states"]
    assert [group["params"] for group in a["param_groups"]] == [group["params"] for group in b["param_groups"]]
    assert a["state"].keys() == b["state"].keys()
    for number, moments in b["state"].items():
        for name, wanted in moments.items():
            scale = float(wanted.abs().max())
            torch.testing.assert_close(a["state"][number][name], wanted, rtol=0, atol=100 * tolerance * scale)
    averages, wanted = (found.state["callbacks"].get("Ema", {}) for found in (mine, theirs))
    torch.testing.assert_close(averages, wanted, rtol=0, atol=tolerance)
    curves = [[line for line in record(folder) if line["step"] > since] for folder in (one, two)]
    for x, y in zip(*curves, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/logit_scale", "val/loss"):
            found, wanted = (float("nan") if line.get(name) is None else line[name] for line in (x, y))
            assert found == pytest.approx(wanted, rel=10 * tolerance, nan_ok=True), (x["step"], name)


@pytest.fixture(scope="module")
def own_ranks():
    """Two ranks that have done nothing else, as a run's have: in one that had served a whole session gloo's thread once crashed."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_unequal_rows_and_lengths_neither_hang_nor_change_the_gradient(own_ranks, tiny_model, micro_batch):
    for worst, tensors in own_ranks.run(RANK_JOBS, "sharded_gradients", tiny_model, micro_batch):
        assert worst < 1e-9
        assert tensors > 20


def test_what_is_not_spread_is_averaged_and_the_norm_counts_each_number_once(own_ranks):
    for plain, spread, norm, _ in own_ranks.run(RANK_JOBS, "unspread_gradients"):
        assert plain == [1.5, 3.0]
        assert spread == [2.0]
        assert norm == pytest.approx((15 * 4 + 1.5**2 + 9) ** 0.5)
    assert [rows for *_, rows in own_ranks.run(RANK_JOBS, "unspread_gradients")] == [3, 2]
    assert "got 2" in own_ranks.run(RANK_JOBS, "mesh_of_two_dimensions")[0]


def test_a_checkpoint_beside_the_training_holds_whole_weights_of_its_step(own_ranks, tmp_path):
    assert own_ranks.run(RANK_JOBS, "background_checkpoint", str(tmp_path)) == [True, True]


def test_a_run_under_fsdp2_is_the_run_under_ddp_and_each_goes_on_from_the_other(own_ranks, config, shards, tmp_path):  # noqa: F811
    common = {"optim.ema": 0.9, "trainer.micro_batch": 3, "trainer.devices": "auto"}
    common |= {"data.val": {"squares": {"shards": f"{shards}/00000.tar"}}}
    common |= {"evaluate.every": "6 steps", "evaluate.at_start": True}
    ddp, fsdp2 = tmp_path / "ddp", tmp_path / "fsdp2"

    def run(name, strategy, start="never"):
        more = {"trainer.strategy": strategy, "checkpoint.background": strategy == "fsdp2"}
        return str(config), common | more | {"run": str(tmp_path / name)}, start, None

    eighth = (str(fsdp2 / "checkpoints" / "8"), str(ddp / "checkpoints" / "8"))
    runs = [run("ddp", "ddp"), run("fsdp2", "fsdp2")]
    runs += [run("to_ddp", "ddp", eighth[0]), run("to_fsdp2", "fsdp2", eighth[1])]
    shares = own_ranks.run(RANK_JOBS, "fits", runs, str(tmp_path))
    for held in zip(*shares, strict=True):
        assert sum(held) in (1, 2)
    assert [0.49 < share < 0.51 for share in shares[0]] == [False, True, False, True]
    one = clipkit.fit(config, common | {"run": str(tmp_path / "one"), "trainer.devices": 1}).folder
    for step in (4, 12):
        agree(fsdp2, ddp, step)
        agree(fsdp2, one, step)
    assert len([line for line in record(fsdp2) if "val/loss" in line]) == 3
    for name in ("to_ddp", "to_fsdp2"):
        agree(tmp_path / name, ddp, 12, since=8)
    mine, theirs = (clipkit.load(folder).encode_text(["a square"]) for folder in (fsdp2, ddp))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_locks_bf16_heads_views_and_a_bad_gradient_are_as_under_ddp(own_ranks, config, tiny_model, shards, tmp_path):  # noqa: F811
    (tmp_path / "fsdp2_spoiler.py").write_text(SPOILER.format(position=16, rank=1))
    (tmp_path / "other").mkdir()
    with_heads = write_config(tmp_path / "other", tiny_model, shards, loss=None, losses=SLIP)
    runs = []
    for name, changes in EACH.items():
        for strategy in ("ddp", "fsdp2"):
            more = {
                "run": str(tmp_path / f"{name}_{strategy}"),
                "trainer.strategy": strategy,
                "trainer.devices": "auto",
            }
            changed = changes | more | {"trainer.length": "3 steps"}
            plugin = "fsdp2_spoiler" if name == "heads" else None
            runs.append((str(with_heads if name == "heads" else config), changed, "never", plugin))
    own_ranks.run(RANK_JOBS, "fits", runs, str(tmp_path))
    for name in EACH:
        agree(tmp_path / f"{name}_fsdp2", tmp_path / f"{name}_ddp", 3)
    counts = read_checkpoint(tmp_path / "heads_fsdp2" / "checkpoints" / "3").state["optimizer_states"][0]["state"]
    assert {int(part["step"]) for part in counts.values()} == {2}


def test_compile_is_refused(config):  # noqa: F811
    with pytest.raises(ValueError, match="trainer.compile.*does not go with trainer.strategy=fsdp2"):
        clipkit.fit(config, {"trainer.strategy": "fsdp2", "trainer.compile": True})


def test_batch_norms_are_refused(config, tmp_path):  # noqa: F811
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    model = tmp_path / "resnet.json"
    model.write_text(json.dumps(TINY_MODEL | {"vision_cfg": vision}))
    with pytest.raises(ValueError, match=r"trainer.strategy=fsdp2: \d+ batch norms.*trainer.strategy=ddp"):
        clipkit.fit(config, {"model": str(model), "trainer.strategy": "fsdp2", "run": str(tmp_path / "run")})


def test_nobody_else_pays_for_fsdp2():
    late = ("torch.distributed.fsdp", "torch.distributed.tensor")
    asked = f"import sys, clipkit.distributed; sys.exit(any(name in sys.modules for name in {late}))"
    assert subprocess.run([sys.executable, "-c", asked]).returncode == 0
