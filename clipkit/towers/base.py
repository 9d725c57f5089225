"""What a tower is: one field of a batch in, features out.

Shapes: B samples, D embedding width, L tokens (patches or words), H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor, nn

Tokenize = Callable[[list[str]], Tensor]
"""Texts to int64 tokens (N, context length), zero padded."""


class Features(NamedTuple):
    """What a tower makes of its field."""

    pooled: Tensor
    """Unit-norm embeddings (B, D), at least float32."""
    tokens: Tensor | None = None
    """Token features (B, L, H), only where a loss needs them."""
    mask: Tensor | None = None
    """True where a token is real (B, L)."""


class Tower(nn.Module):
    """One field of a batch to features. Subclasses implement ``forward``."""

    def depths(self) -> dict[str, int]:
        """Layers between each parameter and the output; all at the output where a tower says nothing else."""
        return {name: 0 for name, _ in self.named_parameters()}

    def lock(self, unlocked: int) -> None:
        """Train only the ``unlocked`` layers nearest to the output; what is locked keeps its batch statistics and drops nothing out."""
        depths = self.depths()
        if unlocked > max(depths.values()) + 1:
            raise ValueError(
                f"unlocked={unlocked}: the tower has {max(depths.values()) + 1} layers, its projection counted"
            )
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(depths[name] < unlocked)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As usual, but what is locked stays in evaluation."""
        super().train(mode)
        if not mode:
            return self
        for module in self.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.training = False
        if not any(parameter.requires_grad for parameter in self.parameters()):
            super().train(False)
        return self

    def forward(self, x: Tensor) -> Features:
        """Encode the field."""
        raise NotImplementedError

    def lengths(self, x: Tensor) -> list[int] | None:
        """Tokens that each sample needs, or None where a shorter input would change the features."""
        return None


def unit(x: Tensor) -> Tensor:
    """Rows of ``x`` (B, D) at unit norm, in float32 or the wider type of ``x``."""
    return F.normalize(x.float() if x.element_size() < 4 else x, dim=-1)
