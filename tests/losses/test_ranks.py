"""Every loss on real gloo ranks under real DDP against one process with the whole batch."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

JOBS = Path(__file__).with_name("rank_jobs.py")
spec = importlib.util.spec_from_file_location("rank_jobs", JOBS)
jobs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(jobs)


def one_process(name, sizes, log_scale, dtype):
    model = jobs.Pair(name, log_scale).to(dtype)
    loss = jobs.loss_and_gradients(model, *jobs.data(sum(sizes), dtype), 0, jobs.STEPS.get(name, 1))
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def held(ranks, sizes, scale, dtype, tolerance):
    """All losses on these ranks against one process with the whole batch."""
    for found in ranks.run(JOBS, "all_under_ddp", list(jobs.LOSSES), sizes, math.log(scale), dtype):
        for name, (loss, gradients) in found.items():
            want_loss, want = one_process(name, sizes, math.log(scale), getattr(torch, dtype))
            assert loss == pytest.approx(want_loss, rel=tolerance), name
            assert gradients.keys() == want.keys()
            for parameter, gradient in gradients.items():
                got = torch.tensor(gradient, dtype=want[parameter].dtype)
                error, size = (got - want[parameter]).abs().max(), want[parameter].abs().max()
                assert error <= tolerance * max(size, 1e-6), (name, parameter)


@pytest.mark.parametrize(
    ("sizes", "scale", "dtype", "tolerance"),
    [
        ([8, 8], 14.3, "float64", 1e-12),
        ([8, 8], 14.3, "float32", 2e-5),
        ([9, 5], 100.0, "float64", 1e-12),
        ([11, 0], 14.3, "float64", 1e-12),
    ],
)
def test_two_ranks_give_loss_and_every_gradient_of_one_process(two_ranks, sizes, scale, dtype, tolerance):
    held(two_ranks, sizes, scale, dtype, tolerance)


def test_three_uneven_ranks_agree_too(three_ranks):
    held(three_ranks, [5, 9, 7], 100.0, "float64", 1e-12)


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
