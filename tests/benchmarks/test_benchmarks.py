"""Benchmarks end with one line of JSON of the agreed shape. No timing is held here: a busy machine would decide."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import scripts

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [path.stem for path in scripts()]
LONG = (
    "decode",
    "embed",
    "exploits",
    "export_parity",
    "learning",
    "loader",
    "loss_memory",
    "micro_batch",
    "probe",
    "onnx_speed",
    "resume",
    "retrieval",
    "step",
    "tar_read",
)  # photographs, gigabytes, or large models
APART = ("chaos", "signals")  # their short forms always run: test_chaos.py
EXACT = ("checkpoints",)  # no clock in them: their bounds hold on any machine
BOUNDS = json.loads((ROOT / "benchmarks" / "bounds.json").read_text())


def run(*arguments, timeout=290):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def last_line(script, done):
    """What a benchmark ends with, which must be of the agreed shape."""
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.strip(), done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(result) == {"benchmark", "device", "peer", "figures", "at_least", "at_most", "held"}
    assert result["benchmark"] == script
    assert done.returncode == (0 if result["held"] else 1)
    bounds = {"at_least": {}, "at_most": {}} | BOUNDS[script] | BOUNDS[script].get("quick", {})
    bounds.pop("quick", None)
    assert bounds == {k: result[k] for k in ("at_least", "at_most")}
    assert {**result["at_least"], **result["at_most"]}.keys() <= result["figures"].keys()
    for value in result["figures"].values():
        assert set(value) == {"value", "min", "max"}
        assert value["min"] <= value["max"]
    return result


def test_every_benchmark_has_bounds():
    assert set(SCRIPTS) == set(BOUNDS)
    for bounds in BOUNDS.values():
        for form in ({key: value for key, value in bounds.items() if key != "quick"}, bounds.get("quick", {})):
            assert set(form) <= {"at_least", "at_most"}
            assert all(isinstance(value, int | float) for group in form.values() for value in group.values())


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(1220)] if name in LONG else [])
        for name in SCRIPTS
        if name not in APART
    ],
)
def test_the_last_line_is_one_object(script):
    done = run(f"benchmarks/{script}.py", "--quick", timeout=1200 if script in LONG else 150)
    result = last_line(script, done)
    assert result["held"] or script not in EXACT, done.stderr


def test_a_bound_that_does_not_hold_is_a_failure(tmp_path):
    code = (
        "import sys, json; sys.path.insert(0, 'benchmarks'); import common, pathlib\n"
        f"common.BOUNDS = pathlib.Path({str(tmp_path / 'bounds.json')!r})\n"
        "sys.exit(common.finish('x', peer='p', figures={'k': common.figure([1, 2, 3])}))"
    )
    for bounds, expected in (({"at_most": {"k": 2}}, 0), ({"at_most": {"k": 1.9}}, 1), ({"at_least": {"k": 2.1}}, 1)):
        (tmp_path / "bounds.json").write_text(json.dumps({"x": bounds}))
        done = run("-c", code)
        assert done.returncode == expected, done.stderr
        assert json.loads(done.stdout)["held"] is (expected == 0)
        assert json.loads(done.stdout)["figures"]["k"] == {"value": 2, "min": 1, "max": 3}


@pytest.mark.slow
@pytest.mark.timeout(1520)
def test_damaged_checkpoints_and_full_disks_of_real_runs_are_recovered_from():
    done = run("benchmarks/checkpoints.py", timeout=1500)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1])["figures"]["recovered"]["value"] == 1
