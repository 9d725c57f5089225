import itertools

import pytest
import torch

from clipkit.optim import Optim, learning_rate_factor, parameter_groups


def test_only_matrices_decay():
    named = {"w": torch.zeros(2, 2), "gain": torch.zeros(2), "scale": torch.zeros(()), "frozen": torch.zeros(3, 3)}
    parameters = [(name, torch.nn.Parameter(value, requires_grad=name != "frozen")) for name, value in named.items()]
    decayed, plain = parameter_groups(parameters, 0.2)
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2)]
    assert [tuple(p.shape) for p in plain["params"]] == [(2,), ()]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)


def test_the_schedule_rises_to_one_and_falls_to_zero():
    factors = [learning_rate_factor(step, warmup=10, steps=110, schedule="cosine") for step in range(111)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))
    assert learning_rate_factor(99, warmup=10, steps=110, schedule="constant") == 1


def test_the_optimiser_trains_with_the_factor_of_its_step():
    weight = torch.nn.Parameter(torch.ones(1, 1))
    optim = Optim(lr=0.1, weight_decay=0, betas=(0.9, 0.98), eps=1e-6, warmup=4, schedule="constant", steps=8)
    optimizer, schedule = optim.build([("w", weight)])
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(1, 1)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
