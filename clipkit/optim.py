"""Optimiser and learning-rate schedule, computed from the configuration alone.

The schedule lives on the device: it follows AdamW's own count of updates, so an update that ``found_inf`` skips moves neither weights,
moments nor learning rate, and nobody waits for the device to hear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipkit import distributed

Layers = Callable[[str], int]
"""A parameter's name to how many layers lie between it and the output of its tower, 0 for what has no depth."""


def _flat(name: str) -> int:
    return 0


@dataclass(frozen=True)
class Optim:
    """AdamW with a warm-up, as open_clip trains (Loshchilov & Hutter, https://arxiv.org/abs/1711.05101).

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices; gains, biases, the scale and other 1-D parameters have none.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
        warmup: Steps of linear warm-up.
        schedule: What follows the warm-up.
        steps: Steps of the whole run.
        layer_decay: Factor on the learning rate for each layer between a parameter and its tower's output; 1 is none.
        layers: Tells those layers; asked only where ``layer_decay`` is not 1.
    """

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    warmup: int
    schedule: Literal["cosine", "constant"]
    steps: int
    layer_decay: float = 1.0
    layers: Layers = _flat

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
        """The optimiser over ``named`` parameters; it sets its own learning rate at each step.

        Raises:
            ValueError: If there is nothing to train.
        """
        groups = parameter_groups(named, self)
        if not groups:
            raise ValueError("nothing is left to train: every parameter is locked; unlock a tower")
        optimizer = _LocalAdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
        optimizer.register_step_pre_hook(lambda it, *_: self.set_rates(it))
        optimizer.register_load_state_dict_post_hook(lay_as_weights)
        return optimizer

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Give every group the learning rate of the update to come, without asking the device how many there were."""
        factor = self.factor(updates(optimizer))
        for group in optimizer.param_groups:
            group["lr"] = group["lr"].to(factor.device)  # a checkpoint's lies on the CPU
            group["lr"].copy_(self.lr * group["share"] * factor)

    def factor(self, done: Tensor) -> Tensor:
        """Share of the peak learning rate after ``done`` updates, a scalar."""
        return learning_rate_factor(done, warmup=self.warmup, steps=self.steps, schedule=self.schedule)


class _LocalAdamW(torch.optim.AdamW):
    """AdamW that updates each rank's share of spread weights in one fused call with the others."""

    def _init_group(self, group: Any, *lists: Any, **more: Any) -> Any:
        found = super()._init_group(group, *lists, **more)  # type: ignore[no-untyped-call]
        if any(distributed.is_spread(x) for x in group["params"]):
            for tensors in (*lists, *more.values()):
                tensors[:] = [distributed.local(x) for x in tensors]
        return found


def lay_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give each moment the strides of its weights: the fused kernel goes through memory, not through indices.

    A checkpoint's moments are contiguous, the weights of a ConvNet are ``channels_last``.
    """
    for weights, state in optimizer.state.items():
        for name, x in state.items():
            if not isinstance(x, Tensor) or distributed.is_spread(x) or x.shape != weights.shape:
                continue
            if x.stride() != weights.stride():
                state[name] = torch.empty_like(weights, dtype=x.dtype).copy_(x)


def updates(optimizer: torch.optim.Optimizer) -> Tensor:
    """How many updates the optimiser made, float64, on the device; skipped ones do not count."""
    parameter = optimizer.param_groups[0]["params"][0]
    if parameter in optimizer.state:
        return optimizer.state[parameter]["step"].double()  # type: ignore[no-any-return]
    return torch.zeros((), dtype=torch.float64, device=parameter.device)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], optim: Optim) -> list[dict[str, Any]]:
    """Trainable parameters by depth and by whether they decay: matrices do, 1-D and scalar parameters do not."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        share = 1.0 if optim.layer_decay == 1 else optim.layer_decay ** optim.layers(name)
        decay = optim.weight_decay if parameter.ndim > 1 else 0.0
        # the fused kernel of a GPU reads the rate as float32; the one of a CPU takes it whole
        dtype = torch.float64 if parameter.device.type == "cpu" else torch.float32
        group = {
            "params": [],
            "weight_decay": decay,
            "share": share,
            "lr": torch.tensor(optim.lr, dtype=dtype, device=parameter.device),
        }
        groups.setdefault((share, decay), group)["params"].append(parameter)
    return list(groups.values())


def learning_rate_factor(done: Tensor, *, warmup: int, steps: int, schedule: Literal["cosine", "constant"]) -> Tensor:
    """Share of the peak learning rate after so many updates: linear warm-up, then a half cosine to 0, or constant.

    Args:
        done: Updates made, any shape, floating.
        warmup: Steps of the warm-up.
        steps: Steps of the whole run.
        schedule: What follows the warm-up.

    Returns:
        Shares of ``done``'s shape.

    Example:
        >>> learning_rate_factor(torch.tensor([0.0, 1, 2, 4]), warmup=2, steps=6, schedule="cosine")
        tensor([0.5000, 1.0000, 1.0000, 0.5000])
    """
    rising = (done + 1) / max(1, warmup)
    if schedule == "constant":
        return rising.clamp(max=1)
    gone = ((done - warmup) / max(1, steps - warmup)).clamp(0, 1)
    return torch.where(done < warmup, rising, 0.5 * (1 + torch.cos(torch.pi * gone)))
