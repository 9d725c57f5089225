"""Optimiser and learning-rate schedule, computed from the configuration alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


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
    """

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    warmup: int
    schedule: Literal["cosine", "constant"]
    steps: int

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> tuple[torch.optim.AdamW, Any]:
        """The optimiser over ``named`` parameters and its schedule, one call of which is one step."""
        optimizer = torch.optim.AdamW(
            parameter_groups(named, self.weight_decay), lr=self.lr, betas=self.betas, eps=self.eps, fused=True
        )
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor())

    def factor(self) -> Callable[[int], float]:
        """Step, counted from 0, to the share of ``lr`` that it trains with."""
        return lambda step: learning_rate_factor(step, warmup=self.warmup, steps=self.steps, schedule=self.schedule)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, 1-D and scalar parameters without."""
    trainable = [parameter for _, parameter in named if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, *, warmup: int, steps: int, schedule: Literal["cosine", "constant"]) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then a half cosine to 0, or constant.

    Example:
        >>> [learning_rate_factor(step, warmup=2, steps=6, schedule="cosine") for step in (0, 1, 2, 4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
