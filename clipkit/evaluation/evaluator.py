"""What an evaluator is."""

from __future__ import annotations

from typing import Protocol

from clipkit.encoder import Encoder

Figures = dict[str, float | int | list[float] | None]
"""Name to value: fractions of one, counts, intervals ``[low, high]``, or None where a figure means nothing."""


class Evaluator(Protocol):
    """An encoder and a data set to figures; called on all ranks, it returns the same on each."""

    task: str
    """What results call the task, in CLIP_benchmark's words."""

    def run(self, encoder: Encoder) -> Figures:
        """The figures of one encoder."""
        ...
