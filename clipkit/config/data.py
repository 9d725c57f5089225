"""`data:`: sources, batches, decoding and augmentation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from clipkit.config.base import LocatedErrors, Name, NotNegative, Positive, Share, Spec, Text, Texts, as_list
from clipkit.config.short_sources import as_sources
from clipkit.config.units import Count, CountOrAuto

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

    shards: Annotated[list[Text], BeforeValidator(as_list, json_schema_input_type=str | list[str])] = Field(
        default_factory=list,
        description="WebDataset tars: a path or several, with brace ranges {00000..01099} or globs; or embedded:NAME.",
    )
    loose: Text | None = Field(
        None,
        description="Instead of shards: a CSV, TSV, JSONL, parquet or folder of images with captions, which is packed "
        "into the cache on first use.",
    )
    weight: Positive = Field(1.0, description="How often its samples are seen, against the other sources' weights.")
    fields: Annotated[dict[Name, Extensions], Field(min_length=1)] = Field(
        default_factory=_default_fields,
        description="Field to where it is read: an extension, several (the first present counts), or json.KEY, a text "
        "or a list of texts of which one is drawn. A field `label` groups samples that are no negatives of each other.",
    )

    @model_validator(mode="after")
    def _from_one_place(self) -> Self:
        if self.loose is not None and self.shards:
            raise LocatedErrors([(("loose",), "a source has either `shards` or `loose`, not both")])
        if self.loose is None and not self.shards:
            empty = "shards" in self.model_fields_set
            message = "must not be empty" if empty else "missing: the source's tars, or `loose` with a CSV or folder"
            raise LocatedErrors([(("shards",), message)])
        return self


class PackSpec(Spec):
    """How the `loose` sources are packed."""

    image_column: Text | None = Field(
        None, description="Column of the image's path or bytes; unset: filepath, image, path or file_name."
    )
    caption_column: Text | None = Field(None, description="Column of the caption; unset: caption, title or text.")
    split: Annotated[Share, Field(lt=1)] = Field(
        0.0,
        description="Share of each loose training source that is held out and evaluated as the task of its name; more "
        "of a small one, for figures that mean something.",
    )
    resize: Annotated[Count, Field(ge=1)] | None = Field(
        None, description="Shorter side to shrink larger images to, in pixels."
    )
    strip_exif: bool = Field(False, description="Remove EXIF, XMP, IPTC and comments.")
    fields: Texts | None = Field(None, description="Further columns, or keys of a JSON, to carry along as JSON.")


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


Sources = Annotated[
    dict[Name, SourceSpec], BeforeValidator(as_sources, json_schema_input_type=str | dict[Name, SourceSpec])
]


class DataSpec(Spec):
    """What the run reads."""

    train: Annotated[Sources, Field(min_length=1)] = Field(
        description="Training sources by name; the name is the override path. A path alone is one source."
    )
    val: Sources = Field(
        default_factory=dict, description="Sources for the validation loss, by name; read whole, once each time."
    )
    batch_size: Annotated[Count, Field(ge=1)] = Field(
        description="Pairs per optimiser step over all ranks; a multiple of the ranks."
    )
    workers: CountOrAuto = Field("auto", description="Loader processes per rank; auto is by the cores at hand.")
    pack: PackSpec = Field(default_factory=PackSpec, description="How the `loose` sources are packed.")
    augment: AugmentSpec = Field(default_factory=AugmentSpec, description="Random changes of training images.")
    bad_samples: Share = Field(
        0.01, description="Share of the samples seen that may be unreadable before the run stops; each is counted."
    )
    cache: Text | None = Field(
        None, description="Folder for shard indexes and embedded data; unset: CLIPKIT_CACHE, else ~/.cache/clipkit."
    )
    trace: bool = Field(False, description="Write the keys of every batch to samples.rankR.jsonl in the run folder.")
