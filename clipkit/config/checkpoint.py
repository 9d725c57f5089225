"""`checkpoint:`: what is kept of a run's weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from clipkit.config.base import Interval, Spec, Text
from clipkit.config.units import Count


class CheckpointSpec(Spec):
    """When to write checkpoints and which to keep."""

    every: Interval | None = Field(
        None, description="Interval: samples, epochs, steps or a time. Unset: only at the end and on a stop."
    )
    keep_last: Annotated[Count, Field(ge=1)] = Field(2, description="How many of the newest to keep.")
    keep_best: Count = Field(
        0, description="How many of the best by `best` to keep besides; each evaluation is saved then."
    )
    best: Text | None = Field(
        None,
        description="The figure that `keep_best` goes by, such as val/TASK/acc1 or val/loss; unset: the first task's "
        "first figure, else val/loss.",
    )
