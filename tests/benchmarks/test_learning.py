"""The peer of the learning benchmark is open_clip's recipe, and both sides of its curve are one computation."""

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "configs" / "demo_model.json"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("learning")


def test_the_peer_decays_what_open_clip_decays(benchmark):
    model, _ = benchmark.build_peer(MODEL)
    plain, decayed = importlib.import_module("open_clip_loop").groups(model, 0.2)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without, with_decay = ({names[id(parameter)] for parameter in group["params"]} for group in (plain, decayed))
    assert not without & with_decay
    assert without | with_decay == set(names.values())
    assert {"logit_scale", "text.ln_final.weight", "visual.trunk.stem.0.bias"} <= without
    assert {"text.token_embedding.weight", "text.positional_embedding", "visual.trunk.stem.0.weight"} <= with_decay
    assert all(name.split(".")[-1] not in ("bias", "gamma") and "ln_" not in name for name in with_decay)


def test_a_few_steps_have_the_peers_losses(benchmark):
    assert benchmark.curve_difference(torch.float64, steps=5) < 1e-12
