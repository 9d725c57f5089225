"""`evaluate:`: benchmarks during and after training, a closed union by `kind`."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from clipkit.config.base import Interval, Name, NotNegative, Spec, Text, Texts, as_list
from clipkit.config.units import Count

GROUP_FIGURES = ("worst_group", "group_gap")
"""What each figure by group ends with."""
_GROUPS = (
    "A metadata key by whose values figures are given too: of the samples' `.json`, a CSV's column, or `metadata.csv` "
    "or `metadata.jsonl` of a folder; unset: none."
)


def _by_group(groups: str | None, names: tuple[str, ...]) -> tuple[str, ...]:
    return () if groups is None else tuple(f"{name}_{end}" for name in names for end in GROUP_FIGURES)


class ZeroShotSpec(Spec):
    """Zero-shot classification."""

    kind: Literal["zero_shot"] = Field(description="Which task this is.")
    data: Text = Field(description="Shards, a folder of class folders, or embedded:NAME.")
    templates: Texts | None = Field(
        None,
        description="Prompts with {c} for the class name, or the name of a set of them (`openai80`); unset: the data set's own, "
        "else `a photo of a {c}.`",
    )
    classnames: Texts | None = Field(
        None,
        description="Class names in the order of the labels, or the name of a set of them (`imagenet1k`); unset: the data set's own.",
    )
    prompts: Text | None = Field(
        None,
        description="JSON or YAML of class name to prompts of its own, instead of templates; unset: the set's own.",
    )
    groups: Text | None = Field(None, description=_GROUPS)

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of its figures, the one that decides first."""
        averages = ("macro", "micro", "weighted")
        names = (f"{average}_{name}" for average in averages for name in ("precision", "recall", "f1"))
        return ("acc1", "acc5", "mean_per_class_recall", *names, "ece", *_by_group(self.groups, ("acc1", "acc5")))


class RetrievalSpec(Spec):
    """Image-text retrieval, both ways."""

    kind: Literal["retrieval"] = Field(description="Which task this is.")
    data: Text = Field(
        description="Shards, a folder of images with captions beside them, a CSV, COCO's or Karpathy's JSON, or embedded:NAME."
    )
    images: Text | None = Field(None, description="The folder of a JSON's images; unset: looked for near the file.")
    split: Text = Field("test", description="Which split of Karpathy's JSON is read.")
    groups: Text | None = Field(None, description=_GROUPS)

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of its figures, the one that decides first."""
        ways = ("image", "text")
        recalls = tuple(f"{way}_retrieval_recall@{k}" for way in ways for k in (5, 1, 10))
        others = (*(f"true_recall@{k}" for k in (1, 5, 10)), "median_rank", "mean_rank", "map_at_r")
        return (
            *(*recalls, "mean_recall@1"),
            *(f"{way}_retrieval_{name}" for way in ways for name in others),
            *("modality_gap", "alignment", "image_uniformity", "text_uniformity"),
            *_by_group(self.groups, recalls),
        )


class MultiLabelSpec(Spec):
    """Zero-shot classification with several labels an image."""

    figures: ClassVar[tuple[str, ...]] = ("mean_average_precision", "mean_average_precision_11_point")

    kind: Literal["multi_label"] = Field(description="Which task this is.")
    data: Text = Field(description="Multi-label shards, or a JSONL of image and labels.")
    templates: Texts | None = Field(None, description="Prompts with {c} for the class name; unset: the data set's own.")
    classnames: Texts | None = Field(None, description="Class names in the order of the labels; unset: the set's own.")


class CompositionalSpec(Spec):
    """Which caption belongs to which image: Winoground, SugarCrepe and their like."""

    figures: ClassVar[tuple[str, ...]] = ("text_acc", "image_acc", "acc", "text_acc_macro")

    kind: Literal["compositional"] = Field(description="Which task this is.")
    data: Text = Field(
        description="A pairs.jsonl, Winoground's .jsonl, or SugarCrepe's or ARO's .json or a folder of them."
    )
    images: Text | None = Field(None, description="Folder of the images; unset: images beside the file, or its folder.")


Kind = Literal["embedding", "pooled"]
Kinds = Annotated[tuple[Kind, ...], BeforeValidator(as_list, json_schema_input_type=Kind | list[Kind])]
Number = Annotated[int, Field(strict=True, ge=1)]
_DATA = "Shards with train/ beside test/, or a folder of class folders in train/ and in test/."
_TRAIN = "What to learn from, where it does not lie beside what is scored."
_NAMES = "Class names in the order of the labels, or the name of a set of them; unset: the data set's own."
_FEATURES = "Image features: `embedding`, `pooled` (before the projection), or both."


def _of_kinds(kinds: tuple[Kind, ...], *names: str) -> tuple[str, ...]:
    return tuple(f"{name}{'' if kind == 'embedding' else f'_{kind}'}" for kind in kinds for name in names)


class LinearProbeSpec(Spec):
    """A linear classifier on frozen image features."""

    kind: Literal["linear_probe"] = Field(description="Which task this is.")
    data: Text = Field(description=_DATA)
    train: Text | None = Field(None, description=_TRAIN)
    classnames: Texts | None = Field(None, description=_NAMES)
    features: Kinds = Field(default=("embedding", "pooled"), min_length=1, description=_FEATURES)
    normalise: bool = Field(True, description="Bring features to unit norm, as CLIP_benchmark does.")
    shots: tuple[Number, ...] = Field((), description="Few-shot probes besides, by training images of each class.")
    validation: float = Field(
        0.2, gt=0, lt=1, description="Share of each class's training images by which the weight decay is chosen."
    )
    seed: int = Field(0, description="Of the draws of shots and of held-out images.")

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of its figures, the one that decides first."""
        ends = ("", *(f"_{shots}shot" for shots in self.shots))
        names = ("lp_acc1", "lp_acc5", "lp_mean_per_class_recall")
        return tuple(f"{name}{end}" for end in ends for name in _of_kinds(self.features, *names))


class NearestNeighboursSpec(Spec):
    """A vote among the nearest training images."""

    kind: Literal["knn"] = Field(description="Which task this is.")
    data: Text = Field(description=_DATA)
    train: Text | None = Field(None, description=_TRAIN)
    classnames: Texts | None = Field(None, description=_NAMES)
    features: Kinds = Field(default=("embedding", "pooled"), min_length=1, description=_FEATURES)
    k: tuple[Number, ...] = Field(default=(1, 10, 20, 100, 200), min_length=1, description="How many neighbours vote.")
    temperature: float = Field(0.07, gt=0, description="A neighbour's vote counts exp(cosine / temperature).")

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of its figures, the one that decides first."""
        return _of_kinds(self.features, *(f"{vote}@{k}" for vote in ("knn_acc1", "knn_majority_acc1") for k in self.k))


TaskSpec = Annotated[
    ZeroShotSpec | RetrievalSpec | MultiLabelSpec | CompositionalSpec | LinearProbeSpec | NearestNeighboursSpec,
    Field(discriminator="kind"),
]


_SMALLER = re.compile(r"(?<![a-z])(loss|ece|gap|rank|error|alignment|uniformity)", re.IGNORECASE)


def smaller_is_better(figure: str) -> bool:
    """Whether a figure is best where it is least, by the last part of its name.

    Losses, calibration errors, gaps, ranks, alignment and uniformity are.

    >>> smaller_is_better("val/loss"), smaller_is_better("val/coco/image_median_rank"), smaller_is_better("val/gap/acc1")
    (True, True, False)
    """
    path = figure.split("/")
    return bool(_SMALLER.search(path[1] if path[:2] == ["val", "loss"] else path[-1]))


class StopSpec(Spec):
    """When a run ends before its length."""

    monitor: Text | None = Field(
        None,
        description="The figure to watch, such as val/TASK/acc1; unset: the first task's first figure, else val/loss.",
    )
    patience: Annotated[Count, Field(ge=1)] = Field(
        3, description="Evaluations in a row without a better figure that end the run."
    )
    min_delta: NotNegative = Field(0.0, description="By how much a figure must be better to count.")


class EvaluateSpec(Spec):
    """What is measured, and when."""

    every: Interval | None = Field(
        None, description="Interval: samples, epochs, steps or a time. Unset: only at the end of the run."
    )
    at_start: bool = Field(
        False, description="Evaluate before the first step too; the end of the run then says before and after."
    )
    stop: StopSpec | None = Field(
        None, description="Early stop; unset: none. Its last step is saved, the run counts as finished."
    )
    tasks: dict[Name, TaskSpec] = Field(
        default_factory=dict, description="Tasks by name; their figures are logged as val/NAME/FIGURE."
    )
