"""The temperature of a pair of fields.

It belongs to the pair, not to a loss: losses over the same pair share it, and exports write the image-text one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_LOG_SCALE = math.log(100)


class LogitScale(nn.Module):
    """A learnable inverse temperature, kept as its logarithm (CLIP, section 2.5), and a bias for sigmoid losses.

    Args:
        log_scale: Initial value of the logarithm; CLIP starts at ln(1 / 0.07).
        bias: Initial bias added to the logits, or None for no bias parameter.
    """

    def __init__(self, log_scale: float = math.log(1 / 0.07), bias: float | None = None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def forward(self) -> Tensor:
        """The scale, a positive scalar, already exponentiated."""
        return self.log_scale.exp()

    def start_bias(self, value: float) -> None:
        """Give it a bias that starts at ``value``, unless it has one."""
        if self.bias is None:
            self.bias = nn.Parameter(torch.tensor(float(value)))

    @torch.no_grad()
    def clamp_(self) -> Tensor:
        """Keep the scale in [1, 100], as CLIP does, after the optimiser's step.

        Returns:
            1 if it was outside, else 0: an int64 scalar on its device.
        """
        before = self.log_scale.clone()
        self.log_scale.clamp_(0.0, MAX_LOG_SCALE)
        return (self.log_scale != before).long()
