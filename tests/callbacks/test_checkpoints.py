import math

import pytest
import torch

from clipkit.callbacks.agreement import Agreement
from clipkit.callbacks.checkpoints import FolderCheckpointIO, SaveCheckpoints, crossed
from clipkit.checkpoint import steps, write_checkpoint


class Trainer:
    """As much of a Trainer as saving needs: it writes real checkpoints."""

    is_global_zero = True
    should_stop = False
    global_step = 0

    def save_checkpoint(self, path):
        write_checkpoint(path, model={"w": torch.zeros(1)}, state={}, info={"step": self.global_step})


def saver(folder, **options):
    defaults = {"every": 20, "batch_size": 10, "steps": 12, "keep_last": 2, "keep_best": 0, "best": None, "figures": {}}
    return SaveCheckpoints(folder=folder, agreement=Agreement(), **(defaults | options))


def run(callback, trainer, figures=None):
    for step in range(1, callback.steps + 1):
        trainer.global_step = step
        if figures is not None:
            callback.figures = figures[step]
        callback.on_train_batch_end(trainer, None, None, None, 0)


def test_the_newest_stay_and_the_last_step_is_always_saved(tmp_path):
    run(saver(tmp_path, every=50), Trainer())
    assert [path.name for path in steps(tmp_path)] == ["12", "10"]


@pytest.mark.parametrize(("best", "kept"), [("val/t/acc1", ["12", "4"]), ("val/loss", ["12", "2"])])
def test_the_best_stays_whatever_its_age_and_of_a_loss_the_smallest(tmp_path, best, kept):
    values = {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.5, 10: 0.3, 12: 0.2}
    figures = [{best: values[step]} if step in values else {} for step in range(13)]
    callback = saver(tmp_path, keep_last=1, keep_best=1, best=best)
    run(callback, Trainer(), figures)
    assert [path.name for path in steps(tmp_path)] == kept
    again = saver(tmp_path, keep_last=1, keep_best=1, best=best)
    again.load_state_dict(callback.state_dict())
    assert again.scores == callback.scores


def test_a_figure_belongs_to_the_weights_it_was_measured_on(tmp_path):
    figures = [{"val/loss": {5: 0.1, 10: 0.9}[step]} if step in (5, 10) else {} for step in range(13)]
    run(saver(tmp_path, every=40, keep_last=1, keep_best=1, best="val/loss"), Trainer(), figures)
    assert [path.name for path in steps(tmp_path)] == ["12", "5"]  # not 8, which came after the evaluation of 5


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path):
    values = {2: 0.5, 4: 0.3, 6: math.nan, 8: math.nan, 10: math.inf, 12: math.nan}
    figures = [{"val/loss": values[step]} if step in values else {} for step in range(13)]
    run(saver(tmp_path, keep_last=1, keep_best=1, best="val/loss"), Trainer(), figures)
    assert [path.name for path in steps(tmp_path)] == ["12", "4"]


def test_without_an_interval_only_the_end_is_saved(tmp_path):
    run(saver(tmp_path, every=None), Trainer())
    assert [path.name for path in steps(tmp_path)] == ["12"]


def test_a_disk_that_refuses_costs_the_checkpoint_and_not_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    io = FolderCheckpointIO({"steps": 3})
    io.save_checkpoint({"state_dict": {}, "global_step": 1}, tmp_path / "file" / "1")
    assert io.failures == 1
    assert "training goes on" in capsys.readouterr().err


def test_lightnings_dictionary_comes_back_from_the_folder(tmp_path):
    io = FolderCheckpointIO({"steps": 3})
    given = {
        "state_dict": {"w": torch.ones(2)},
        "epoch": 0,
        "global_step": 2,
        "pytorch-lightning_version": "2.6.6",
        "loops": {"fit_loop": {"n": 1}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0)}}}],
        "callbacks": {"SaveCheckpoints": {"scores": {}}},
    }
    io.save_checkpoint(given, tmp_path / "2")
    back = io.load_checkpoint(tmp_path / "2")
    assert set(back) == set(given)
    assert back["loops"] == given["loops"]
    assert torch.equal(back["state_dict"]["w"], torch.ones(2))
    assert back["optimizer_states"][0]["state"][0]["step"] == 2


def test_every_multiple_of_the_interval_is_met_once_whatever_the_batch():
    for every in (1, 7, 25, 64):
        met = [step for step in range(1, 60) if crossed(step, batch_size=10, every=every)]
        expected = sorted({-(-k // 10) for k in range(every, 591, every)})
        assert met == expected
