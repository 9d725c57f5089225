"""Early stop: when it ends a run, which way is better, and what it remembers."""

from types import SimpleNamespace

import pytest

from clipkit.callbacks.early_stop import EarlyStop


def steps_until_stop(values, *, monitor="val/t/acc1", patience=2, min_delta=0.0):
    figures = {}
    stop = EarlyStop(monitor=monitor, patience=patience, min_delta=min_delta, figures=figures)
    trainer = SimpleNamespace(global_step=0, should_stop=False)
    for step, value in enumerate(values, start=1):
        figures.clear()
        if value is not ...:
            figures[monitor] = value
        trainer.global_step = step
        stop.on_train_batch_end(trainer, None, None, None, 0)
        if trainer.should_stop:
            return step, stop
    return None, stop


@pytest.mark.parametrize(
    ("values", "options", "step"),
    [
        ([0.1, 0.2, 0.3, 0.4], {}, None),
        ([0.1, 0.3, 0.2, 0.3], {}, 4),  # as good is not better
        ([0.1, 0.3, ..., ..., 0.2, ..., 0.2], {}, 7),  # steps without an evaluation do not count
        ([0.1, 0.2, 0.1, 0.3, 0.1, 0.1], {}, 6),
        ([0.1, 0.11, 0.12], {"min_delta": 0.05}, 3),
        ([3.0, 2.0, 1.0], {"monitor": "val/loss"}, None),
        ([1.0, 2.0, 3.0], {"monitor": "val/loss"}, 3),
        ([float("nan"), None, 0.5], {"patience": 3}, None),
        ([float("nan"), float("nan")], {}, 2),
    ],
)
def test_when_it_stops(values, options, step):
    assert steps_until_stop(values, **options)[0] == step


def test_a_resumed_run_goes_on_waiting():
    _, stop = steps_until_stop([0.3, 0.2])
    again = EarlyStop(monitor="val/t/acc1", patience=2, min_delta=0.0, figures={"val/t/acc1": 0.3})
    again.load_state_dict(stop.state_dict())
    trainer = SimpleNamespace(global_step=3, should_stop=False)
    again.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.should_stop
    assert "did not get better in 2 evaluations, the best was 0.3000 at step 1" in again.reason
