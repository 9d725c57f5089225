import json

import pytest
import torch

import clipkit
from clipkit.cli.main import run as command_line
from clipkit.guard import Guard
from clipkit.losses.base import Loss
from clipkit.towers.base import Features
from tests.test_training import config, final_hash, record  # noqa: F401  (config is a fixture)


class Optimizer:
    found_inf = None


def test_steps_rows_and_keys_are_named():
    guard, optimizer = Guard(["image", "text"]), Optimizer()
    for step in range(1, 6):
        image, text = torch.ones(3, 2), torch.ones(3, 2)
        if step == 4:
            text[1, 0] = float("inf")
        guard.see({"image": Features(image), "text": Features(text)}, [f"{step}{letter}" for letter in "abc"])
        guard.hold(optimizer, torch.tensor(float("nan") if step in (2, 4) else 1.0))
        assert float(optimizer.found_inf) == float(guard.flag) == (step in (2, 4))
    found = guard.take(5)
    assert (found.steps, found.first, found.culprits) == (2, 2, [(0, 4, "text", ["4b"])])
    assert "2 steps were skipped" in str(found)
    assert guard.take(5) is None


def test_a_zero_row_makes_its_rank_s_loss_nan_and_is_named():
    guard, image = Guard(["image", "text"]), torch.ones(3, 2)
    whole = {"image": Features(image), "text": Features(torch.tensor([[1.0, -1.0]] * 3))}
    assert guard.see(whole, list("abc")) == 1  # a sum of zero is no norm of zero
    image[2] = 0
    assert guard.see(whole, list("abc")).isnan()
    for norm in (1.0, float("nan")):
        guard.hold(Optimizer(), torch.tensor(norm))
    found = guard.take(2)
    assert found.culprits == [(0, 2, "image", ["c"])]
    assert "zero norm, of c" in str(found)


def test_a_step_with_a_zero_row_trains_nothing(config, tmp_path, capsys, monkeypatch):  # noqa: F811
    from clipkit.towers.towers import Towers

    encode = Towers.forward

    def spoilt(self, batch):
        features = encode(self, batch)
        if batch["position"] == 16 * 4:
            rows = torch.arange(len(features["text"].pooled))[:, None] != 1
            features["text"] = Features(features["text"].pooled * rows)
        return features

    monkeypatch.setattr(Towers, "forward", spoilt)
    run = clipkit.fit(config, {"run": str(tmp_path / "run")})
    assert (
        "(the first: step 5); rank 0, step 5: text features, not finite or of zero norm, of " in capsys.readouterr().err
    )
    state = torch.load(run.folder / "checkpoints" / "12" / "state.pt", weights_only=True)
    assert {int(part["step"]) for part in state["optimizer_states"][0]["state"].values()} == {11}


def test_without_a_culprit_the_backward_pass_is_named():
    guard = Guard(["image"])
    guard.see({"image": Features(torch.ones(2, 2))}, ["a", "b"])
    guard.hold(Optimizer(), torch.tensor(float("inf")))
    assert "arose in the backward pass" in str(guard.take(7))


class Spoiler(Loss):
    """No loss, but at some positions its gradient is not a number."""

    def __init__(self, positions):
        super().__init__()
        self.positions = positions

    def forward(self, features, batch):
        return features["image"].pooled.sum() * (float("nan") if batch["position"] in self.positions else 0.0)


def test_a_bad_gradient_never_reaches_the_weights(config, tmp_path, capsys):  # noqa: F811
    run = clipkit.fit(
        config, {"run": str(tmp_path / "run")}, losses={"spoiler": lambda scale_of: Spoiler({16 * 4, 16 * 7})}
    )
    said = capsys.readouterr().err
    assert "1 step was skipped for a gradient that is not finite (the first: step 5)" in said
    assert "2 of 8 steps so far trained nothing" in said
    lines = record(run.folder)
    rates = [line["train/lr"] for line in lines]
    assert rates[4] == rates[5]  # the skipped step's learning rate is the next one's
    assert rates[7] == rates[8]
    assert all(line["train/loss"] is None for line in lines if line["step"] in (5, 8))
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    state = torch.load(run.folder / "checkpoints" / "12" / "state.pt", weights_only=True)
    assert {int(part["step"]) for part in state["optimizer_states"][0]["state"].values()} == {10}


def test_a_run_that_only_skips_stops_and_keeps_its_weights(config, tmp_path, capsys):  # noqa: F811
    losses = {"spoiler": lambda scale_of: Spoiler(range(10**6))}
    with pytest.raises(RuntimeError, match=r"no step of the last 12 had a gradient.*optim\.lr"):
        clipkit.fit(config, {"run": str(tmp_path / "run"), "logging.every": "50 steps"}, losses=losses)
    assert not (tmp_path / "run" / "checkpoints" / "12").exists()


def test_a_moving_average_is_kept_and_goes_on(config, tmp_path):  # noqa: F811
    overrides = {"optim.ema": 0.5, "optim.schedule": "constant"}
    run = clipkit.fit(config, overrides | {"run": str(tmp_path / "run")})
    name = "towers.by_field.image.model.proj"

    def stored(step):
        from clipkit.checkpoint import read_checkpoint

        found = read_checkpoint(run.folder / "checkpoints" / str(step))
        return found.model[name], found.state["callbacks"]["Ema"]["weights"][name]

    before, after = stored(8), stored(12)
    assert not torch.equal(*after)
    assert (after[1] - after[0]).norm() < (after[1] - before[0]).norm()  # it follows
    cut = clipkit.fit(config, overrides | {"run": str(tmp_path / "cut")})
    (cut.folder / "checkpoints" / "12" / "manifest.json").unlink()
    again = clipkit.fit(config, overrides | {"run": str(tmp_path / "cut")})
    assert final_hash(again.folder) == final_hash(run.folder)
    run = again
    assert torch.equal(stored(12)[1], after[1])


def test_a_locked_tower_does_not_move_and_too_much_is_refused(config, tmp_path, capsys):  # noqa: F811
    run = clipkit.fit(config, {"model.lock": "image", "run": str(tmp_path / "run")})
    from clipkit.checkpoint import read_checkpoint

    first, last = (read_checkpoint(run.folder / "checkpoints" / step).model for step in ("4", "12"))
    image = [name for name in first if ".image." in name]
    assert image
    assert all(torch.equal(first[name], last[name]) for name in image)
    assert not torch.equal(
        first["towers.by_field.text.model.text_projection"], last["towers.by_field.text.model.text_projection"]
    )
    assert run.step == 12
    capsys.readouterr()
    for override, words in (
        ("model.lock=audio", ["model.lock.audio", "no such tower", "image, text"]),
        ("model.lock.image.unlocked=99", ["model.lock.image", "unlocked=99", "layers"]),
    ):
        assert command_line(["fit", str(config), override, f"run={tmp_path / 'other'}"]) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert not (tmp_path / "other").exists()


class Push(Loss):
    """No loss, but it drives the temperature up."""

    def __init__(self, scale):
        super().__init__()
        self.scale = [scale]

    def forward(self, features, batch):
        return -10 * self.scale[0]() + features["image"].pooled.sum() * 0.0


def test_steps_that_clamp_the_temperature_are_counted_in_their_window(config, tmp_path, tiny_model):  # noqa: F811
    tiny_model.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"init_logit_scale": 4.6042}))
    losses = {"push": lambda scale_of: Push(scale_of(("image", "text"))), "bad": lambda scale_of: Spoiler({16 * 8})}
    overrides = {"run": str(tmp_path / "run"), "logging.every": "3 steps"}
    run = clipkit.fit(config, overrides, losses=losses)

    def counted():
        return [line["train/logit_scale_clamps"] for line in record(run.folder)]

    # ln(100) is 4.60517: warming up it moves by 5e-4 in step 1; step 9 trains nothing
    assert counted() == [2, 3, 2, 3]
    for step in (8, 12):
        (run.folder / "checkpoints" / str(step) / "manifest.json").unlink()
    clipkit.fit(config, overrides, losses=losses)  # from step 4, in the middle of a window
    assert counted() == [2, 3, 2, 3]
