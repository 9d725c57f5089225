"""`loss:` and `losses:`: what is minimised, a closed union by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from clipkit.config.base import LocatedErrors, Name, NotNegative, Positive, Real, Spec, Text

Width = Annotated[int, Field(strict=True, ge=1)]


def _growing(prefixes: dict[int, float] | None) -> dict[int, float] | None:
    if prefixes is not None and list(prefixes) != sorted(prefixes):
        raise ValueError(f"write the widths in growing order: {', '.join(map(str, sorted(prefixes)))}")
    return prefixes


# YAML's keys of a mapping are texts or integers, so widths are not strict here.
Prefixes = Annotated[
    dict[Annotated[int, Field(ge=1)], Positive] | None,
    AfterValidator(_growing),
    Field(description="Matryoshka: leading widths that are trained too, each with its weight, as {64: 1, 512: 1}."),
]
Pair = Annotated[tuple[Name, Name], Field(description="The two fields that are pulled together.")]
Scale = Annotated[
    Literal["shared", "own"],
    Field(
        description="Whether losses over the same pair share one temperature, which exports write, or this has its own."
    ),
]
Weight = Annotated[Positive, Field(description="Factor of this loss in the total.")]
Duplicates = Annotated[
    Literal["negatives", "ignore", "positives"],
    Field(description="What equal captions, images or labels in a batch are to each other."),
]
ExchangeOf = Annotated[
    Literal["gather", "ring"],
    Field(
        description="How features of other ranks come: gathered, or round a ring in less memory (for very large batches)."
    ),
]


class InfoNCESpec(Spec):
    """Symmetric InfoNCE over the global batch (CLIP)."""

    kind: Literal["infonce"] = Field(description="Which loss this is.")
    weight: Weight = 1.0
    pair: Pair = ("image", "text")
    scale: Scale = "shared"
    sides: Literal["both", "first", "second"] = Field(
        "both", description="Whether both fields pick their partner, or only the first or the second of the pair."
    )
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of each target that is spread over all columns."
    )
    duplicates: Duplicates = "negatives"
    prefixes: Prefixes = None
    exchange: ExchangeOf = "gather"


class SigmoidSpec(Spec):
    """Sigmoid loss over all pairs of the global batch (SigLIP)."""

    kind: Literal["sigmoid"] = Field(description="Which loss this is.")
    weight: Weight = 1.0
    pair: Pair = ("image", "text")
    scale: Scale = "shared"
    bias: Real | Literal["batch"] = Field(
        "batch",
        description="First bias of the logits where the model brings none: a number (SigLIP: -10), or `batch`, -ln(data.batch_size).",
    )
    duplicates: Duplicates = "negatives"
    prefixes: Prefixes = None
    exchange: ExchangeOf = "gather"


class DistillationSpec(Spec):
    """Divergence from a teacher's similarities (CLIP-KD, MobileCLIP)."""

    kind: Literal["distillation"] = Field(description="Which loss this is.")
    weight: Weight = 1.0
    pair: Pair = ("image", "text")
    scale: Scale = "shared"
    teacher: tuple[Name, Name] = Field(
        ("teacher_image", "teacher_text"),
        description="The teacher's embeddings of the two fields: fields of each source, in `.npy` members, unless `teacher_model` makes them.",
    )
    teacher_model: Text | None = Field(
        None,
        description="A live teacher: a frozen model, as in `model.name` or NAME:tag, whose embeddings are computed in the step. It sees the "
        "student's augmented images at its own size, and must tokenize as the student does.",
    )
    teacher_scale: Positive = Field(100.0, description="The teacher's inverse temperature.")
    prefixes: Prefixes = None
    exchange: ExchangeOf = "gather"


class TripletSpec(Spec):
    """Triplet loss with the hardest negative of the global batch (VSE++)."""

    kind: Literal["triplet"] = Field(description="Which loss this is.")
    weight: Weight = 1.0
    pair: Pair = ("image", "text")
    margin: Positive = Field(0.2, description="By how much a pair's cosine shall be above its hardest negative's.")
    warmup: Annotated[int, Field(strict=True, ge=0)] = Field(
        0,
        description="Samples at the start in which the mean over all negatives stands for the hardest, which collapses "
        "from random weights; VSE-infinity takes an epoch.",
    )


class MutualInformationSpec(Spec):
    """Minus a lower bound of the mutual information (MINE, SMILE, InfoNCE)."""

    kind: Literal["mutual_information"] = Field(description="Which loss this is.")
    weight: Weight = 1.0
    pair: Pair = ("image", "text")
    scale: Scale = "shared"
    bound: Literal["infonce", "dv", "smile"] = Field(
        "smile",
        description="Which bound: `infonce` is at most ln(batch), `dv` varies much, `smile` less for some bias.",
    )
    clip: Positive = Field(10.0, description="Of `smile`: largest absolute value of the critic among non-pairs.")


class SLIPSpec(Spec):
    """NT-Xent between two views of an image (SLIP, SimCLR)."""

    kind: Literal["slip"] = Field(description="Which loss this is.")
    weight: Weight = 1.0
    views: tuple[Name, Name] = Field(
        ("image_view1", "image_view2"), description="The two views, fields that share a tower."
    )
    hidden: Width = Field(4096, description="Width of the projection head's hidden layers.")
    out: Width = Field(256, description="Width that the head projects to.")
    temperature: Positive = Field(0.1, description="Divides the cosines; fixed.")


class SogCLRSpec(Spec):
    """Global contrastive loss for small batches (SogCLR, FastCLIP)."""

    kind: Literal["sogclr"] = Field(description="Which loss this is.")
    weight: Weight = 1.0
    pair: Pair = ("image", "text")
    scale: Scale = "shared"
    samples: Width = Field(description="Samples of all training sources together; each is remembered by its id.")
    gamma: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.8, description="Share of the current batch in what is remembered."
    )
    rho: NotNegative = Field(6.5, description="Price of a high temperature.")
    eps: Positive = Field(1e-8, description="Keeps the logarithm finite.")


def short_loss(value: Any) -> Any:
    """`infonce` is `{kind: infonce}`."""
    return {"kind": value} if isinstance(value, str) else value


AnyLossSpec = InfoNCESpec | SigmoidSpec | DistillationSpec | TripletSpec | MutualInformationSpec | SLIPSpec | SogCLRSpec
LossSpec = Annotated[
    Annotated[AnyLossSpec, Field(discriminator="kind")],
    BeforeValidator(short_loss, json_schema_input_type=str | AnyLossSpec),
]


def paired_fields(spec: AnyLossSpec) -> tuple[str, ...]:
    """The fields of the sources that a loss pairs; views are made, not stored."""
    return () if isinstance(spec, SLIPSpec) else spec.pair


def stored_fields(spec: AnyLossSpec) -> tuple[str, ...]:
    """The fields of the sources that a loss reads beside what it pairs."""
    return spec.teacher if isinstance(spec, DistillationSpec) and spec.teacher_model is None else ()


def move_loss(tree: Any) -> Any:
    """Turn `loss: X` into `losses: {KIND: X}`, so that everything behind reads one form.

    Raises:
        LocatedErrors: If both are given.
    """
    if not isinstance(tree, dict) or tree.get("loss") is None:
        return tree
    if tree.get("losses"):
        raise LocatedErrors(
            [(("loss",), "`loss` and `losses` are both given; keep one (`loss` is short for one entry)")]
        )
    loss = short_loss(tree["loss"])
    name = loss.get("kind") if isinstance(loss, dict) else getattr(loss, "kind", None)
    return {key: value for key, value in tree.items() if key != "loss"} | {"losses": {str(name or "loss"): loss}}
