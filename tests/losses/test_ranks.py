"""InfoNCE on real gloo ranks under real DDP against one process with the whole batch."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

JOBS = Path(__file__).with_name("rank_jobs.py")
spec = importlib.util.spec_from_file_location("rank_jobs", JOBS)
jobs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(jobs)


def one_process(sizes, duplicates, log_scale, dtype):
    model = jobs.Pair(duplicates, log_scale).to(dtype)
    loss = jobs.loss_and_gradients(model, *jobs.data(sum(sizes), dtype), 0)
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("sizes", "duplicates", "scale", "dtype", "tolerance"),
    [
        ([8, 8], "negatives", 14.3, "float64", 1e-12),
        ([8, 8], "negatives", 100.0, "float32", 1e-5),
        ([5, 9], "positives", 100.0, "float64", 1e-12),
        ([9, 5], "ignore", 14.3, "float64", 1e-12),
        ([11, 0], "negatives", 14.3, "float64", 1e-12),
    ],
)
def test_two_ranks_give_loss_and_every_gradient_of_one_process(two_ranks, sizes, duplicates, scale, dtype, tolerance):
    want_loss, want = one_process(sizes, duplicates, math.log(scale), getattr(torch, dtype))
    for loss, gradients in two_ranks.run(JOBS, "infonce_under_ddp", sizes, duplicates, math.log(scale), dtype):
        assert loss == pytest.approx(want_loss, rel=tolerance)
        for name, gradient in gradients.items():
            got = torch.tensor(gradient, dtype=want[name].dtype)
            assert (got - want[name]).abs().max() <= tolerance * want[name].abs().max(), name


def test_three_uneven_ranks_agree_too(three_ranks):
    want_loss, want = one_process([5, 9, 7], "positives", math.log(100), torch.float64)
    for loss, gradients in three_ranks.run(JOBS, "infonce_under_ddp", [5, 9, 7], "positives", math.log(100), "float64"):
        assert loss == pytest.approx(want_loss, rel=1e-12)
        for name, gradient in gradients.items():
            got = torch.tensor(gradient, dtype=torch.float64)
            assert (got - want[name]).abs().max() <= 1e-12 * want[name].abs().max(), name


def test_collectives_keep_rank_order_and_uneven_rows(two_ranks):
    first, second = two_ranks.run(JOBS, "collectives")
    assert first["sizes"] == second["sizes"] == [1, 2]
    assert first["everyone"] == second["everyone"] == [[0, 0], [1, 1], [1, 1]]
    assert first["reduced"] == [[0, 0]]
    assert second["reduced"] == [[2, 2], [2, 2]]
    assert first["json"] == [{"rank": 0, "text": "é"}, {"rank": 1, "text": "éé"}]
    assert first["broadcast"] == second["broadcast"] == 6
    assert first["max"] == second["max"] == 1


def test_an_error_on_rank_0_is_raised_everywhere(two_ranks):
    assert two_ranks.run(JOBS, "on_rank_0_raises") == ["the folder is taken"] * 2
