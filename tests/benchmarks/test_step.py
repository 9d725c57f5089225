"""The step benchmark where one CPU process is not enough."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def figures(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "benchmarks/step.py", "--quick", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_each_measure_can_be_switched_off(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from step import captions, clipkit_step

    images = torch.zeros(4, 3, 224, 224, dtype=torch.uint8)
    for measure in ("trimmed", "parts", "fused"):
        step = clipkit_step("ViT-S-32-alt", images, captions(4, 49408), **{measure: False})
        step()
        step()


@pytest.mark.slow
def test_two_ranks_print_one_line_between_them():  # four times ViT-B-32 with its optimiser: 12 GB
    found = figures("--ranks", "2", "--device", "cpu")
    assert found["device"].endswith(", 2 ranks")
    assert found["figures"]["rate_ratio"]["value"] > 0


@pytest.mark.gpu
def test_a_gpu_steps_under_bf16_and_says_its_share_of_the_peak():
    found = figures("--device", "cuda", "--peak", "100")
    assert 0 < found["figures"]["mfu"]["value"] < 100
    assert found["figures"]["rate_ratio"]["value"] > 0
