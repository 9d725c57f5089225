"""`logging:`: where figures go besides `metrics.jsonl`, which is always written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clipkit.config.base import Length, Spec, Text
from clipkit.config.units import Duration


class WandbSpec(Spec):
    """Weights & Biases."""

    project: Text = Field(description="Project to log to.")
    entity: Text | None = Field(None, description="User or team; unset: the account's default.")
    name: Text | None = Field(None, description="Name of the run; unset: the run folder's name.")
    mode: Literal["online", "offline"] = Field("online", description="Offline writes to the run folder only.")


class LoggingSpec(Spec):
    """How often to log, and where to."""

    every: Length = Field(Duration(50, "steps"), description="Window of the logged figures: samples, epochs or steps.")
    csv: bool = Field(False, description="Also write metrics.csv.")
    tensorboard: bool = Field(False, description="Also write TensorBoard files.")
    wandb: WandbSpec | None = Field(None, description="Also log to Weights & Biases.")
