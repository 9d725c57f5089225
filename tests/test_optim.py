import copy
import itertools
import math

import pytest
import torch

from clipkit.module import seed_generators
from clipkit.optim import Optim, learning_rate_factor, parameter_groups

DEFAULT = {
    "lr": 0.1,
    "weight_decay": 0.2,
    "betas": (0.9, 0.98),
    "eps": 1e-6,
    "warmup": 4,
    "schedule": "constant",
    "steps": 8,
}


def factors(warmup, steps, schedule):
    return learning_rate_factor(
        torch.arange(steps + 1, dtype=torch.float64), warmup=warmup, steps=steps, schedule=schedule
    ).tolist()


def test_only_matrices_decay():
    named = {"w": torch.zeros(2, 2), "gain": torch.zeros(2), "scale": torch.zeros(()), "frozen": torch.zeros(3, 3)}
    parameters = [(name, torch.nn.Parameter(value, requires_grad=name != "frozen")) for name, value in named.items()]
    decayed, plain = parameter_groups(parameters, Optim(**DEFAULT))
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2)]
    assert [tuple(p.shape) for p in plain["params"]] == [(2,), ()]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)


def test_the_schedule_rises_to_one_and_falls_to_zero():
    cosine = factors(10, 110, "cosine")
    assert cosine[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert cosine[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 100)) for i in range(101)])
    assert all(a >= b for a, b in itertools.pairwise(cosine[9:]))
    assert factors(10, 110, "constant")[99] == 1
    assert factors(0, 4, "cosine") == pytest.approx([1, 0.8535533, 0.5, 0.1464466, 0])


def trained(optim, gradients, skip=()):
    weight = torch.nn.Parameter(torch.ones(1, 1))
    optimizer, rates = optim.build([("w", weight)]), []
    for number, gradient in enumerate(gradients):
        weight.grad = torch.full((1, 1), gradient)
        optimizer.found_inf = torch.tensor(float(number in skip))
        optimizer.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return weight.item(), rates, optimizer


def test_the_optimiser_trains_with_the_factor_of_its_step():
    _, rates, _ = trained(Optim(**DEFAULT), [1.0] * 5)
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_a_skipped_update_moves_neither_weights_nor_schedule():
    with_bad = trained(Optim(**DEFAULT), [1.0, math.nan, 2.0, math.inf, 3.0], skip=(1, 3))
    without = trained(Optim(**DEFAULT), [1.0, 2.0, 3.0])
    assert with_bad[0] == without[0]
    assert [with_bad[1][i] for i in (0, 2, 4)] == without[1]


def test_the_schedule_goes_on_from_a_state():
    whole = trained(Optim(**DEFAULT), [1.0, 2.0, 3.0, 4.0])
    half = trained(Optim(**DEFAULT), [1.0, 2.0])
    weight = torch.nn.Parameter(torch.full((1, 1), half[0]))
    optimizer = Optim(**DEFAULT).build([("w", weight)])
    optimizer.load_state_dict(half[2].state_dict())
    for gradient in (3.0, 4.0):
        weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    assert weight.item() == whole[0]


def test_contiguous_moments_of_a_checkpoint_go_on_over_weights_that_lie_otherwise():
    def convolution():
        start = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        weight = torch.nn.Parameter(start.to(memory_format=torch.channels_last))
        return weight, Optim(**DEFAULT).build([("w", weight)])

    def train(weight, optimizer, steps):
        for step in steps:
            gradient = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(step))
            weight.grad = gradient.to(memory_format=torch.channels_last)
            optimizer.step()

    whole, optimizer = convolution()
    train(whole, optimizer, (1, 2))
    weights, state = whole.detach().clone(), copy.deepcopy(optimizer.state_dict())
    for moments in state["state"].values():
        moments |= {name: x.contiguous() for name, x in moments.items()}
    train(whole, optimizer, (3, 4))
    resumed, optimizer = convolution()
    resumed.data.copy_(weights)
    optimizer.load_state_dict(state)
    train(resumed, optimizer, (3, 4))
    assert torch.equal(resumed, whole)


def test_layers_nearer_to_the_input_learn_slower():
    named = [(name, torch.nn.Parameter(torch.ones(2, 2))) for name in ("stem", "block", "head")]
    depth = {"stem": 2, "block": 1, "head": 0}
    optimizer = Optim(**DEFAULT | {"warmup": 0, "weight_decay": 0.0}, layer_decay=0.5, layers=depth.get).build(named)
    for _, parameter in named:
        parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert [1 - p[0, 0].item() for _, p in named] == pytest.approx([0.025, 0.05, 0.1], rel=1e-4)


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="unlock a tower"):
        Optim(**DEFAULT).build([("w", torch.nn.Parameter(torch.ones(2), requires_grad=False))])


def test_seeding_a_step_is_that_of_torch_and_keeps_no_calls_for_devices_that_are_not_here():
    kept = len(torch.cuda._queued_calls)
    seed_generators(7, torch.device("cpu"))
    drawn = torch.rand(3)
    assert len(torch.cuda._queued_calls) == kept
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), drawn)
