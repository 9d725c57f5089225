import json

import pytest

from clipkit.callbacks.outcome import before_and_after, best_checkpoint, closing_lines

ACC, LOSS = "val/t/acc1", "val/loss"


def line(step, acc, loss):
    return {"step": step, "samples": step * 8, ACC: acc, "val/t/acc1_ci": [0, 1], LOSS: loss}


@pytest.fixture
def run(tmp_path):
    """A run of which steps 4 and 8 are kept."""
    for step in (4, 8):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    record = [
        line(0, 0.25, 2.0),
        {"step": 2, "train/loss": 1.0},
        line(2, 0.9, 0.1),
        line(4, 0.5, 1.0),
        line(8, 0.375, 1.5),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in record))
    return tmp_path


def test_the_end_of_a_run_says_before_after_best_and_what_is_next(run):
    best = run / "checkpoints" / "4"  # step 2 was better and is not kept
    assert closing_lines(run, ACC) == [
        "t: acc1 25.0 % -> 37.5 %",
        "loss 2.0000 -> 1.5000",
        f"best checkpoint: {best} ({ACC} 0.5000 at step 4)",
        f"next: clipkit evaluate {best} --data YOUR_PHOTOS",
        f"next: clipkit export {best} --format open_clip --out exported",
    ]
    assert f"best checkpoint: {best} ({LOSS} 1.0000 at step 4)" in closing_lines(run, LOSS)
    assert f"next: clipkit evaluate {run / 'checkpoints' / '8'} --data YOUR_PHOTOS" in closing_lines(run, None)


def test_training_that_did_not_help_is_said(run):
    record = [line(0, 0.6, 0.5), line(8, 0.6, 0.75)]
    assert "the start was no worse (0.6000)" in best_checkpoint(run, record, ACC)[1]
    assert "the start was no worse (0.5000)" in best_checkpoint(run, record, LOSS)[1]


def test_a_run_that_did_not_measure_its_start_says_nothing_more(run):
    record = [line(4, 0.5, 1.0), line(8, 0.375, 1.5)]
    assert before_and_after(record) == before_and_after([line(0, 0.5, 1.0)]) == []
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in record))
    assert closing_lines(run, ACC) == []
