"""`evaluate:`: benchmarks during and after training, a closed union by `kind`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from clipkit.config.base import Interval, Name, Spec, Text, Texts


class ZeroShotSpec(Spec):
    """Zero-shot classification."""

    figures: ClassVar[tuple[str, ...]] = ("acc1", "acc5", "mean_per_class_recall")

    kind: Literal["zero_shot"] = Field(description="Which task this is.")
    data: Text = Field(description="Shards, a folder of class folders, or embedded:NAME.")
    templates: Texts | None = Field(
        None, description="Prompts with {c} for the class name; unset: the data set's own, else `a photo of a {c}.`"
    )
    classnames: Texts | None = Field(
        None, description="Class names in the order of the labels; unset: the data set's own."
    )


class RetrievalSpec(Spec):
    """Image-text retrieval, both ways."""

    figures: ClassVar[tuple[str, ...]] = tuple(
        f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (5, 1, 10)
    )

    kind: Literal["retrieval"] = Field(description="Which task this is.")
    data: Text = Field(description="Shards, a folder of images with captions beside them, a CSV, or embedded:NAME.")


TaskSpec = Annotated[ZeroShotSpec | RetrievalSpec, Field(discriminator="kind")]


class EvaluateSpec(Spec):
    """What is measured, and when."""

    every: Interval | None = Field(
        None, description="Interval: samples, epochs, steps or a time. Unset: only at the end of the run."
    )
    at_start: bool = Field(
        False, description="Evaluate before the first step too; the end of the run then says before and after."
    )
    tasks: dict[Name, TaskSpec] = Field(
        default_factory=dict, description="Tasks by name; their figures are logged as val/NAME/FIGURE."
    )
