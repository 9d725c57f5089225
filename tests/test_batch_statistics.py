"""Batch norms and skipped steps: running statistics are those of a run without the step, bit for bit."""

import json
import shutil

import pytest
import torch
from torch import nn

import clipkit
from clipkit.batch_statistics import BatchStatistics
from clipkit.checkpoint import read_checkpoint
from clipkit.guard import Guard
from clipkit.micro_batch import activation_bytes
from clipkit.module import CLIPModule
from clipkit.towers.base import Features, Tower
from tests.conftest import TINY_MODEL
from tests.test_guard import Optimizer
from tests.test_rollback import rewrite
from tests.test_training import config, final_hash  # noqa: F401  (config is a fixture)

RESNET = TINY_MODEL | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}
TIMM = {"timm_model_name": "test_resnet", "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear"}
TIMM = TINY_MODEL | {"vision_cfg": TIMM | {"image_size": 32}}
SOUND, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


class Norms(nn.Module):
    """A norm that trains, one that is locked, one without statistics."""

    def __init__(self):
        super().__init__()
        self.trained, self.locked = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None).eval()
        self.none = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x):
        return self.none(self.locked(self.trained(x)))


def state(module):
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("why", ["bad", "spike", "left out", "sound"])
def test_every_kind_of_skipped_step_puts_them_back_and_no_other(why):
    module, guard = Norms(), Guard([])
    statistics = BatchStatistics(module)
    guard.spike_score, guard.left_out = 8.0, [(30, 40)]
    for step in range(20):
        guard.hold(Optimizer(), SOUND, step=step)
    module(torch.randn(5, 3))
    before = state(module)
    statistics.keep()
    for part in (torch.randn(4, 3), torch.full((4, 3), float("nan") if why == "bad" else 2.0)):  # micro-batches
        module(part)
    norm = {"bad": BAD, "spike": torch.tensor(1e6)}.get(why, SOUND)
    guard.hold(Optimizer(), norm, step=30 if why == "left out" else 20)
    moved = state(module)
    assert not same(moved, before)
    statistics.put_back_(guard.flag)
    after = state(module)
    assert same(after, before if why != "sound" else moved)
    assert after["trained.num_batches_tracked"].dtype == torch.int64


def test_a_module_without_batch_norms_copies_nothing():
    statistics = BatchStatistics(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.BatchNorm1d(2).eval()))
    statistics.keep()
    assert statistics._kept == []


@pytest.mark.parametrize(("model", "micro_batch"), [(RESNET, None), (TIMM, 8)], ids=["open_clip", "timm"])
def test_a_run_with_a_bad_step_is_a_run_without_it(config, tmp_path, tiny_model, monkeypatch, model, micro_batch):  # noqa: F811
    tiny_model.write_text(json.dumps(model))
    step_of = CLIPModule.training_step

    def spoilt(module, batch, index):
        if batch["position"] != 16 * 4:
            return step_of(module, batch, index)
        first = next(child for child in module.towers.modules() if isinstance(child, nn.Conv2d))
        handle = first.register_forward_hook(lambda *given: given[-1] * float("nan"))
        try:
            return step_of(module, batch, index)
        finally:
            handle.remove()

    overrides = {"trainer.micro_batch": micro_batch, "trainer.allow_batchnorm": True, "trainer.length": "7 steps"}
    overrides |= {"checkpoint.every": "1 steps"}
    with monkeypatch.context() as patched:
        patched.setattr(CLIPModule, "training_step", spoilt)
        run = clipkit.fit(config, overrides | {"run": str(tmp_path / "run")}).folder
    weights = {step: read_checkpoint(run / "checkpoints" / str(step)).model for step in (4, 5, 6)}
    statistics = [name for name in weights[4] if "running_" in name or "num_batches" in name]
    assert len(statistics) > 20
    assert same({name: weights[4][name] for name in statistics}, weights[5])
    assert not same({name: weights[5][name] for name in statistics}, weights[6])
    without = tmp_path / "without"
    shutil.copytree(run, without)
    for step in (5, 6, 7):
        shutil.rmtree(without / "checkpoints" / str(step))
    rewrite(without / "checkpoints" / "4", left_out=[[5, 5]])
    clipkit.fit(config, overrides | {"run": str(without)})
    assert final_hash(without, 7) == final_hash(run, 7)


def test_the_choice_of_a_micro_batch_moves_no_statistics():
    class Normed(Tower):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

        def forward(self, x):
            return Features(self.layers(x))

    tower = Normed()
    before = state(tower)
    from contextlib import nullcontext

    assert activation_bytes(tower, lambda count: torch.rand(count, 4), nullcontext) > 0
    assert same(before, state(tower))
