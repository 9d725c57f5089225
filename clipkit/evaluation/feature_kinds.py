"""Which image features probes and neighbours stand on, and what their figures are called."""

from __future__ import annotations

from collections.abc import Sequence

import torch

KINDS = ("embedding", "pooled")
"""After the projection into the space shared with text, and before it."""


def check_kinds(features: Sequence[str]) -> tuple[str, ...]:
    """The kinds of features, each once.

    Raises:
        ValueError: If there is none, or one is unknown.
    """
    unknown = [kind for kind in features if kind not in KINDS]
    if unknown or not features or isinstance(features, str):
        raise ValueError(f"features: {features!r}; a list of one or both of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in features)


def suffix(kind: str) -> str:
    """What figures of a kind of features end with; CLIP_benchmark's names are those of the embedding."""
    return "" if kind == "embedding" else f"_{kind}"


def compute_device(device: torch.device) -> torch.device:
    """Where float64 can be had: Apple's graphics processors have none."""
    return torch.device("cpu") if device.type == "mps" else device
