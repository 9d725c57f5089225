import json
import math
from types import SimpleNamespace

from clipkit.callbacks.metrics import MetricsLog, OffTheClock, _strict, cut_back, write_csv
from clipkit.callbacks.progress import Progress


def test_the_record_is_cut_back_to_the_step_and_loses_a_torn_line(tmp_path):
    record = tmp_path / "metrics.jsonl"
    record.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)) + '{"step": 5, "tra')
    cut_back(record, 3)
    assert [json.loads(line)["step"] for line in record.read_text().splitlines()] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    cut_back(tmp_path / "absent.jsonl", 3)
    assert not (tmp_path / "absent.jsonl").exists()


def test_csv_has_a_column_for_every_figure_of_any_step(tmp_path):
    record = tmp_path / "metrics.jsonl"
    record.write_text('{"step": 1, "a": 0.5}\n{"step": 2, "a": 0.25, "val/b": null}\n')
    write_csv(record, tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,a,val/b", "1,0.5,", "2,0.25,"]


def test_json_never_holds_nan():
    assert _strict({"a": math.nan, "b": math.inf, "c": 1.5, "d": None}) == {"a": None, "b": None, "c": 1.5, "d": None}


def test_an_evaluation_between_two_steps_is_no_waiting_for_data(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("clipkit.callbacks.metrics.time.perf_counter", lambda: now[0])
    trainer = SimpleNamespace(is_global_zero=True, global_step=0)
    log = MetricsLog(folder=tmp_path, every=10, batch_size=4, loggers=[], csv_copy=False, progress=Progress(9))
    log.on_train_start(trainer, None)
    now[0] += 1  # a second of waiting
    log.on_train_batch_start(trainer, None, None, 0)
    trainer.global_step = 1
    log.on_train_batch_end(trainer, None, None, None, 0)
    now[0] += 60  # a minute of evaluation
    OffTheClock(log).on_train_batch_end(trainer, None, None, None, 0)
    log.on_train_batch_start(trainer, None, None, 1)
    assert log._waited == 1
    assert now[0] - log._window_start == 1


def test_off_a_terminal_a_window_is_one_line_and_steps_are_silent(capsys):
    progress = Progress(100, terminal=False)
    progress.start(40)
    progress.step(41)
    progress.show(50, {"step": 50, "train/loss": 1.0})
    progress.stop()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("step 50/100 | loss 1.0000 | eta ")


def test_on_a_terminal_there_is_a_bar_and_no_lines(capsys):
    progress = Progress(4, terminal=True)
    progress.start(0)
    progress.step(1)
    progress.show(2, {"step": 2, "train/loss": 1.0})
    progress.stop()
    shown = capsys.readouterr().err
    assert "2/4" in shown
    assert "loss 1.0000" in shown
