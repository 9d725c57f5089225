"""`guard:`: what happens when the numbers go wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clipkit.config.base import Positive, Share, Spec
from clipkit.config.units import Count


class GuardSpec(Spec):
    """Skip, then roll back, then stop."""

    consecutive: Annotated[Count, Field(ge=1)] = Field(
        3, description="So many steps in a row that trained nothing make the run roll back."
    )
    share: Annotated[Share, Field(gt=0)] = Field(
        0.1, description="More than this share of the last 100 steps that trained nothing makes the run roll back."
    )
    rollbacks: Count = Field(
        2, description="Roll-backs to an earlier checkpoint before the run stops with code 1; 0: it stops at once."
    )
    margin: Count = Field(20, description="Steps on either side of the bad ones that a roll-back leaves out with them.")
    spikes: Literal["ignore", "warn", "skip", "rollback"] = Field(
        "warn",
        description="A step whose loss or gradient norm is far above those before: skip leaves out the update by the norm "
        "alone, rollback goes back to before it and leaves out the steps around it.",
    )
    spike_score: Positive = Field(
        8.0, description="How far is far: robust standard deviations above the median of the last 100 steps."
    )
    replicas_every: Count = Field(
        500,
        description="Steps between two comparisons of all ranks' weights and buffers, which must be equal bits; they are also compared "
        "before each checkpoint. 0: never.",
    )
