"""What an evaluator is, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from clipkit.evaluation.encodings import Encodings

Figures = dict[str, float | int | list[float] | None]
"""Name to value: fractions of one, counts, intervals ``[low, high]``, or None where a figure means nothing."""


@dataclass(frozen=True)
class Findings:
    """What one evaluator found about one encoder.

    Args:
        figures: The headline figures.
        outcomes: For a figure that is a mean over independent units (images, captions, pairs), the value of each unit,
            under the figure's name: what intervals and paired tests are computed from.
        clusters: For such a figure, which cluster each unit belongs to (int64), where units are not independent: captions of one image.
        strata: For such a figure, the stratum of each unit (int64), where it is the mean over strata of the mean within: recall by class.
        details: Tables behind the figures (per class, per group), JSON types only.
    """

    figures: Figures
    outcomes: Mapping[str, Tensor] = field(default_factory=dict)
    clusters: Mapping[str, Tensor] = field(default_factory=dict)
    strata: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """A data set and the question asked of it; called on all ranks, it finds the same on each."""

    task: str
    """What results call the task, in CLIP_benchmark's words."""

    def run(self, encodings: Encodings) -> Findings:
        """What is found about one encoder."""
        ...
