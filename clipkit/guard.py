"""Non-finite numbers never reach the weights, and no step waits to hear of them; nor do rows of zero norm, which have no direction.

The flag stays on the device: the gradient's norm, which all ranks share after their all-reduce, tells fused AdamW (``found_inf``) to leave
weights, moments and learning rate as they are. A zero row makes the loss NaN on its rank, so that every rank skips the step: its gradient
through the normalisation would be finite, huge and meaningless. Which rank and which samples brought it is kept beside it and read when a
window is logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipkit import distributed, spikes
from clipkit.towers.base import Features

_NAMED = 8
BAD, SPIKE, LEFT_OUT = 1, 2, 3
"""Why a step's update was skipped."""


class Step(NamedTuple):
    """A step as the guard saw it.

    Args:
        step: Counted from 1.
        code: 0 if it trained, else BAD (a gradient that is not finite), SPIKE or LEFT_OUT.
        norm: Of the whole gradient.
        loss: Of the global batch.
    """

    step: int
    code: int
    norm: float
    loss: float


@dataclass(frozen=True)
class Skipped:
    """What a window's skipped steps were about.

    Args:
        steps: How many were skipped.
        first: The first of them, counted from 1.
        culprits: Per rank that had features not finite or of zero norm in a step: rank, step, field, keys of the first samples.
    """

    steps: int
    first: int
    culprits: list[tuple[int, int, str, list[str]]]

    def __str__(self) -> str:
        some = [
            f"rank {rank}, step {step}: {field} features, not finite or of zero norm, of {', '.join(keys)}"
            for rank, step, field, keys in self.culprits
        ]
        whence = "; ".join(some) if some else "features were finite on every rank, so it arose in the backward pass"
        many = f"{self.steps} steps were" if self.steps > 1 else "1 step was"
        return f"{many} skipped for a gradient that is not finite (the first: step {self.first}); {whence}"


class Guard:
    """Watches features and gradients.

    Args:
        fields: Fields whose features are watched.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = list(fields)
        self.flag = torch.zeros(())
        """1 if the last step was skipped, else 0; on the device."""
        self.left_out: list[tuple[int, int]] = []
        """First and last step of each stretch whose updates are left out, counted from 1."""
        self.rollbacks = 0
        """How often the run went back."""
        self.spike_score: float | None = None
        """Score of a gradient's norm from which on its step is skipped; None: never."""
        self.norms = spikes.empty()
        """Logarithms of the last norms, which decide that; only kept where it is asked for."""
        self.clamps: dict[str, Tensor] = {}
        """Steps since the last logged window that would have taken a logit scale out of its range, by the pair's name; on the device."""
        self.seen: list[Step] = []
        """The steps that the last ``take`` was about."""
        self._keys: list[list[str]] = []
        self._rows: list[dict[str, Tensor]] = []
        self._flags: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._losses: list[Tensor] = []

    def see(self, features: Mapping[str, Features], keys: Sequence[str]) -> Tensor:
        """Note which rows of a step's features (B, D) are not finite or all zero; nothing is read back.

        Returns:
            The loss's factor, a scalar on the device: 1, or NaN if a row is all zero.
        """
        with torch.no_grad():
            watched = {name: features[name].pooled for name in self.fields if name in features}
            empty = {name: ~x.any(1) for name, x in watched.items()}
            self._rows.append({name: ~x.sum(1).isfinite() | empty[name] for name, x in watched.items()})
            self._keys.append(list(keys))
            if not empty:
                return torch.ones(())
            zero = torch.stack([rows.any() for rows in empty.values()]).any()
            return torch.where(zero, torch.nan, 1.0)

    def hold(self, optimizer: Any, norm: Tensor, *, loss: Tensor | None = None, step: int = 0) -> None:
        """Let the optimiser skip its update on the device unless the gradient's norm is finite (and no spike, and its step not left out).

        Args:
            optimizer: A fused one.
            norm: Of the whole gradient, equal on every rank, a scalar.
            loss: This rank's loss, for the record.
            step: Counted from 1.
        """
        bad = ~norm.isfinite()
        code = bad.float() * BAD
        if self.spike_score is not None:
            self.norms = self.norms.to(norm.device)
            spike = spikes.score(norm, self.norms) > self.spike_score
            spikes.remember_(self.norms, norm, step)
            code = torch.where(spike & ~bad, float(SPIKE), code)
        if any(first <= step <= last for first, last in self.left_out):
            code = torch.full_like(code, LEFT_OUT)
        self.flag = (code > 0).float()
        optimizer.found_inf = self.flag
        self._flags.append(code)
        self._norms.append(norm.detach())
        self._losses.append(norm.detach() if loss is None else loss)

    def take(self, step: int) -> Skipped | None:
        """What was skipped since the last call; all ranks call it together at the end of a window. Waits for the device.

        Args:
            step: The last step, counted from 1.
        """
        codes, keys, rows = self._flags, self._keys, self._rows
        numbers = (self._norms, self._losses)
        self.reset()
        if not codes:
            return None
        start = step - len(codes) + 1
        self.seen = _read(start, codes, *numbers)
        bad = [number for number, one in enumerate(self.seen) if one.code == BAD]
        if not bad:
            return None
        here: list[Any] = []
        for number in bad:
            for field, wrong in rows[number].items() if number < len(rows) else ():
                named = [keys[number][row] for row in wrong.nonzero()[:_NAMED, 0].tolist()]
                if named:
                    here.append((distributed.rank(), start + number, field, named))
        found = [tuple(item) for part in distributed.gather_json(here[:_NAMED]) for item in part]
        return Skipped(len(bad), start + bad[0], found)

    def reset(self) -> None:
        """Forget what was noted since the last ``take``."""
        self._flags, self._keys, self._rows, self._norms, self._losses, self.seen = [], [], [], [], [], []


def _read(start: int, codes: list[Tensor], norms: list[Tensor], losses: list[Tensor]) -> list[Step]:
    """Of each step its code, norm, and loss, averaged over ranks, in one look at the device."""
    mean = distributed.all_reduce_(torch.stack(losses).float()) / distributed.world_size()
    table = torch.stack([torch.stack(codes).to(mean.device), torch.stack(norms).to(mean), mean]).T.tolist()
    return [Step(start + number, int(code), norm, loss) for number, (code, norm, loss) in enumerate(table)]
