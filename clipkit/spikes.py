"""Spikes: a value far above those before it, by median and median absolute deviation (robust to the spikes themselves)."""

from __future__ import annotations

import torch
from torch import Tensor

HISTORY = 100
FEWEST = 16
_FLOOR = 0.125  # of the logarithm: a score of 8 is at least e times the median, however quiet the past was


def score(value: Tensor, history: Tensor) -> Tensor:
    """Robust standard deviations of ``ln(value)`` above the median of the past; nothing waits for the device.

    Args:
        value: A positive scalar.
        history: Logarithms of earlier values (H,), NaN where there is none.

    Returns:
        A scalar; 0 while fewer than 16 values are known or the value is not finite.
    """
    middle = history.nanmedian()
    deviation = 1.4826 * (history - middle).abs().nanmedian()
    found = (value.log() - middle) / deviation.clamp(min=_FLOOR)
    known = (~history.isnan()).sum() >= FEWEST
    return torch.where(known & found.isfinite(), found, 0.0)


def remember_(history: Tensor, value: Tensor, step: int) -> None:
    """Put a value into the ring; one that is not finite and positive is none. A spike stays in it: a new level becomes the median."""
    log = value.log()
    history[step % len(history)] = torch.where(log.isfinite(), log, torch.nan)


def empty(device: torch.device | None = None) -> Tensor:
    """A ring that knows nothing (H,)."""
    return torch.full((HISTORY,), torch.nan, device=device)
