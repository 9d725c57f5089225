"""The page says what is true of the run, escapes what strangers wrote, and opens in a browser without a request."""

import json
import re
import shutil

import pytest
import torch

import clipkit
from clipkit.cli.main import run
from clipkit.report import build, study
from clipkit.report.record import read_record
from tests.report.conftest import CAPTION, HOSTILE


def test_nothing_of_a_stranger_becomes_markup(pages):
    for page in pages:
        text = page.read_text()
        assert len(text) < build.MOST_BYTES
        assert HOSTILE not in text
        assert CAPTION[:20] not in text
        assert "\u202e" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
        assert text.count("<script") == 1
        assert not re.search(r"\son\w+=\"", text)
        assert not re.search(r"(src|href)=\"(?!data:|#)", text)
        assert "default-src &#39;none&#39;" in text


def test_figures_are_those_of_evaluate_and_carry_chance(runs, pages):
    figures = clipkit.evaluate(runs[0], data=runs[0].parent / "classes", task="zero_shot")
    text = pages[0].read_text()
    rows = dict(re.findall(r"<tr><td>([\w@]+)</td><td class=\"n\">([\d.]+) %", text))
    assert rows["acc1"] == f"{100 * figures['acc1']:.1f}"
    assert "33.3 %" in text  # chance of three classes


def test_two_runs_are_compared(pages):
    text = pages[1].read_text()
    assert "optim.lr" in text
    assert "0.003" in text
    section = text[text.index('id="comparison"') : text.index('id="training"')]
    assert "<td>acc1</td>" in section
    assert "<td>mean_per_class_recall</td>" in section
    assert "no test: not a mean over samples" in section


def test_a_run_says_what_it_lacks(runs, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(runs[0] / "config.yaml", bare)
    assert run(["report", str(bare), "--out", str(tmp_path / "bare.html")]) == 0
    text = (tmp_path / "bare.html").read_text()
    said = capsys.readouterr().out
    assert "started, nothing recorded yet" in text
    for words in ("metrics.jsonl is missing", "no checkpoint verifies"):
        assert words in text
        assert words in said


def test_a_run_in_training_is_read_as_far_as_it_is_written(runs, tmp_path):
    going = tmp_path / "going"
    shutil.copytree(runs[0], going)
    lines = (going / "metrics.jsonl").read_text().splitlines()
    (going / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])
    found = read_record(going)
    assert len(found.rows) == 2
    assert any("1 line(s)" in line for line in found.missing)
    assert found.series("train/loss")[0] == (16.0, json.loads(lines[0])["train/loss"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no run folder"),
        (["{run}", "--out", "page.txt"], "FILE.html"),
        (["{run}", "{run}", "{run}"], "compares two"),
    ],
)
def test_bad_input_is_refused(arguments, words, runs, capsys):
    assert run(["report", *(word.format(run=runs[0]) for word in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_confusions_by_hand():
    labels, said = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([1, 1, 0, 2, 2])
    margin = torch.tensor([0.1, 0.3, -0.2, 0.5, -0.1])
    found = study.confusions(list("abcde"), labels, said, margin, ("x", "y", "z"))
    assert [(one.right, one.taken_for, one.times, one.of, one.example, one.other) for one in found] == [
        ("x", "y", 2, 3, "b", "d"),
        ("y", "z", 1, 1, "d", "e"),
    ]


def test_chance_of_several_captions():
    captions = torch.tensor([2, 1, 1])
    draws = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(s))[:2] for s in range(4000)])
    owner = torch.tensor([0, 0, 1, 2])
    share = torch.stack([(owner[draws] == image).any(1).double().mean() for image in range(3)]).mean()
    assert study._any_of(captions, 4, 2) == pytest.approx(float(share), abs=0.02)
