import json
from contextlib import nullcontext

import pytest
import torch

import clipkit
from clipkit.micro_batch import activation_bytes, choose, memory_left
from clipkit.towers.base import Features, Tower, unit
from tests.test_training import config, final_hash, record  # noqa: F401  (config is a fixture)


class Wide(Tower):
    """Keeps 1,000 floats a sample beside its input: what tanh gives, which the second layer keeps as its own input."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(10, 1000), torch.nn.Tanh(), torch.nn.Linear(1000, 4))

    def forward(self, x):
        return Features(unit(self.layers(x)))


def inputs(count):
    return torch.rand(count, 10)


def test_activations_are_counted_by_the_sample():
    per_sample = activation_bytes(Wide(), inputs, nullcontext)
    assert 4 * 1000 <= per_sample <= 4 * 1000 + 200  # tanh's output, which the second layer keeps as its input
    locked = Wide()
    locked.lock(0)
    assert activation_bytes(locked, inputs, nullcontext) == 0


def test_the_count_agrees_with_what_a_larger_batch_keeps():
    tower, kept = Wide(), {}
    own = {p.data_ptr() for p in tower.parameters()}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        tower(inputs(64))
    whole = sum(x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in own)
    assert 64 * activation_bytes(tower, inputs, nullcontext) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize(("available", "want"), [(10**9, None), (41 * 4100, 40), (5 * 4100, 5)])
def test_the_largest_that_fits(available, want):
    choice = choose({"image": (Wide(), inputs)}, pairs=64, available=available, autocast=nullcontext)
    assert choice.micro_batch == want
    assert ("auto is off" in str(choice)) == (want is None)


def test_not_even_one_pair():
    with pytest.raises(ValueError, match="one pair needs about"):
        choose({"image": (Wide(), inputs)}, pairs=64, available=100, autocast=nullcontext)


def test_the_memory_that_is_left():
    cpu = torch.device("cpu")
    whole = memory_left(cpu, ranks_here=1, parameters=0, features=0)
    assert 10**7 < whole < 10**14
    assert memory_left(cpu, ranks_here=1, parameters=10**15, features=0) == 0


def test_a_run_chooses_says_keeps_and_reuses(config, tmp_path, capsys, monkeypatch):  # noqa: F811
    plain = clipkit.fit(config, {"run": str(tmp_path / "plain")})
    fits = clipkit.fit(config, {"run": str(tmp_path / "fits"), "trainer.micro_batch": "auto"})
    assert "auto is off: 16 pairs a rank" in capsys.readouterr().err
    assert final_hash(fits.folder) == final_hash(plain.folder)
    # no machine of tests is short of memory for sixteen squares: tell it that it is
    monkeypatch.setattr("clipkit.building.memory_left", lambda *_, **__: 4 * 100_000)
    tight = clipkit.fit(config, {"run": str(tmp_path / "tight"), "trainer.micro_batch": "auto"})
    said = capsys.readouterr().err
    assert "auto chose" in said
    kept = json.loads((tight.folder / "checkpoints" / "12" / "state.json").read_text())["micro_batch"]
    assert kept["ranks"] == 1
    assert 1 <= kept["pairs"] < 16
    for mine, theirs in zip(record(tight.folder), record(plain.folder), strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
    (tight.folder / "checkpoints" / "12" / "manifest.json").unlink()
    before = final_hash_of_files(tight.folder)
    monkeypatch.undo()
    again = clipkit.fit(config, {"run": str(tight.folder), "trainer.micro_batch": "auto"})
    assert f"auto keeps the run's choice, {kept['pairs']}" in capsys.readouterr().err
    assert final_hash_of_files(again.folder) == before


def final_hash_of_files(folder):
    return (folder / "checkpoints" / "12" / "model.safetensors").read_bytes()
