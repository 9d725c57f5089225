"""What every metric asks of its input."""

import torch
from torch import Tensor

_ROWS = 256  # looked at together: a mask of all rows would be as large as a quarter of the embeddings


def require_finite(values: Tensor, name: str) -> None:
    """Refuse NaN and infinity.

    NaN compares as false with everything, which would make every rank 0: a perfect score for a broken model.

    Args:
        values: Any numbers (N, ...).
        name: What the message calls them.

    Raises:
        ValueError: If a row holds one that is not finite, with its number.
    """
    starts = range(0, len(values), _ROWS)
    if all(bool(torch.isfinite(values[start : start + _ROWS]).all()) for start in starts):
        return
    bad = (~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero()
    raise ValueError(f"{name} must be finite: row {int(bad[0])} and {len(bad) - 1} others hold NaN or infinity")


def require_index(index: Tensor, size: int, name: str, of: str) -> None:
    """Refuse an index that points at nothing.

    Args:
        index: Numbers from 0 (N,).
        size: How many things there are.
        name: What the message calls the index.
        of: What the message calls the things.

    Raises:
        ValueError: If one is negative or not below ``size``.
    """
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
        wrong = int(index.min()) if int(index.min()) < 0 else int(index.max())
        raise ValueError(f"{name} holds {wrong}, but there are {size} {of} (0 to {size - 1})")


def require_some(values: Tensor) -> None:
    """Refuse a figure over nothing.

    Raises:
        ValueError: If there are no rows.
    """
    if not len(values):
        raise ValueError("no samples: a figure over nothing is not a number")


def require_same_length(**named: Tensor) -> None:
    """Refuse columns of one table that differ in length.

    Raises:
        ValueError: With the length of each.
    """
    if len({len(values) for values in named.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in named.items())
        raise ValueError(f"one row a sample is needed in each, got {lengths}")
