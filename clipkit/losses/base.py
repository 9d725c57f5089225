"""What a loss is: the features of this rank's samples in, one scalar out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Embedded(Protocol):
    """Features of a field, as a tower gives them; losses read no more than this of a tower."""

    @property
    def pooled(self) -> Tensor:
        """Unit-norm embeddings (B, D)."""


class Loss(nn.Module):
    """Features of a step to a scalar; subclasses implement ``forward``.

    A loss gathers over ranks by itself. What it returns is averaged over ranks, by DDP for the gradients and by the logger for the value:
    that average is the loss of the global batch, at any number of ranks and any split of the batch between them. Buffers must be equal on
    every rank after a step, as weights are; ``guard.replicas_every`` looks.
    """

    def forward(self, features: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss.

        Args:
            features: Field name to its features (``pooled`` (B, D), unit norm).
            batch: The batch that they were made from: ``id`` (B,), ``content`` and what else the loss declares.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def take_back_(self, skipped: Tensor) -> None:
        """Undo what the last forward wrote into buffers, if its step is skipped; for a loss that remembers, called after each step's backward.

        Args:
            skipped: Not 0 if it is, a scalar on the device, equal on every rank; to be read without waiting for it (``torch.where``).
        """


def checked_pair(pair: tuple[str, str]) -> tuple[str, str]:
    """``pair``, if it names two fields."""
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(f"pair must name two fields, got {pair}")
    return pair


def pooled_of(features: Mapping[str, Any], names: Sequence[str]) -> list[Tensor]:
    """The embeddings of some fields; an error names the one that no tower makes."""
    for name in names:
        if name not in features:
            raise ValueError(f"a loss reads the field {name!r}, which no tower makes; there are: {', '.join(features)}")
    return [features[name].pooled for name in names]
