"""`data:`: sources, batches, decoding and augmentation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from clipkit.config.base import Name, NotNegative, Positive, Share, Spec, Text, Texts
from clipkit.config.units import Bytes, Count, CountOrAuto

_FIELD_VALUE = re.compile(r"json\.[^.\s]+|[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def _known_form(values: list[str]) -> list[str]:
    for value in values:
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"{value!r} is neither an extension such as 'jpg' nor 'json.KEY'")
    return values


def _same_both_ways(value: Any) -> Any:
    return [value, value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("the first number must not be above the second")
    return value


Extensions = Annotated[Texts, AfterValidator(_known_form)]
ShareAboveZero = Annotated[Share, Field(gt=0)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


def _default_fields() -> dict[str, list[str]]:
    return {"image": ["jpg", "jpeg", "png", "webp"], "text": ["txt"]}


class SourceSpec(Spec):
    """One list of shards and how its samples are read."""

    shards: Texts = Field(
        description="WebDataset tars: a path or several, with brace ranges {00000..01099} or globs; URLs of https, s3, gs or hf "
        "with brace ranges; or embedded:NAME."
    )
    weight: Positive = Field(1.0, description="How often its samples are seen, against the other sources' weights.")
    fields: Annotated[dict[Name, Extensions], Field(min_length=1)] = Field(
        default_factory=_default_fields,
        description="Field to where it is read: an extension, several (the first present counts), or json.KEY, a text "
        "or a list of texts of which one is drawn. A field `label` groups samples that are no negatives of each other.",
    )


class AffineSpec(Spec):
    """A random affine warp; each bound may be left at no warp."""

    degrees: NotNegative = Field(0.0, description="Largest rotation either way, in degrees.")
    translate: Annotated[tuple[Share, Share], BeforeValidator(_same_both_ways)] = Field(
        (0.0, 0.0), description="Largest shift, as shares of width and height; one number is both."
    )
    scale: Range = Field((1.0, 1.0), description="Range of the zoom.")
    shear: NotNegative = Field(0.0, description="Largest horizontal shear either way, in degrees.")


class AugmentSpec(Spec):
    """Random changes of training images; drawn by the sample's position, so resumed runs draw the same."""

    scale: Annotated[tuple[ShareAboveZero, ShareAboveZero], AfterValidator(_ordered)] = Field(
        (0.9, 1.0), description="Range of the crop's share of the image's area."
    )
    ratio: Range = Field((3 / 4, 4 / 3), description="Range of the crop's width over height.")
    flip: Share = Field(0.0, description="Probability of a mirror image; captions that say left or right forbid it.")
    color_jitter: tuple[NotNegative, NotNegative, NotNegative, Annotated[NotNegative, Field(le=0.5)]] | None = Field(
        None, description="Strength of the change in brightness, contrast, saturation and hue (at most 0.5)."
    )
    color_jitter_prob: Share = Field(1.0, description="Probability of the colour jitter, where one is set.")
    grayscale: Share = Field(0.0, description="Probability of a grey image.")
    affine: AffineSpec | None = Field(None, description="A random affine warp.")
    fill: Literal["white", "black"] = Field("white", description="What an affine warp uncovers.")


class DataSpec(Spec):
    """What the run reads."""

    train: Annotated[dict[Name, SourceSpec], Field(min_length=1)] = Field(
        description="Training sources by name; the name is the override path."
    )
    val: dict[Name, SourceSpec] = Field(
        default_factory=dict, description="Sources for the validation loss, by name; read whole, once each time."
    )
    batch_size: Annotated[Count, Field(ge=1)] = Field(
        description="Pairs per optimiser step over all ranks; a multiple of the ranks."
    )
    workers: CountOrAuto = Field("auto", description="Loader processes per rank; auto is by the cores at hand.")
    augment: AugmentSpec = Field(default_factory=AugmentSpec, description="Random changes of training images.")
    bad_samples: Share = Field(
        0.01, description="Share of the samples seen that may be unreadable before the run stops; each is counted."
    )
    cache: Text | None = Field(
        None,
        description="Folder for shard indexes, remote shards and embedded data; unset: CLIPKIT_CACHE, else ~/.cache/clipkit.",
    )
    cache_size: Annotated[Bytes, Field(ge=1)] | None = Field(
        None,
        description="Bytes of remote shards kept on each node, such as 200GB; unset: half of the disk's free space.",
    )
    trace: bool = Field(False, description="Write the keys of every batch to samples.rankR.jsonl in the run folder.")
