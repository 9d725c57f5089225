"""`data:`: sources, batches, decoding and augmentation."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from clipkit.config.augment import AnyAugmentSpec, AugmentSpec, same_both_ways
from clipkit.config.base import Length, Name, Positive, Share, Spec, Text, Texts
from clipkit.config.units import Count, CountOrAuto

_FIELD_VALUE = re.compile(r"json\.[^.\s]+|[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def _known_form(values: list[str]) -> list[str]:
    for value in values:
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"{value!r} is neither an extension such as 'jpg' nor 'json.KEY'")
    return values


def _named_as_view(name: str) -> str:
    if not re.fullmatch(r"image_view[1-9][0-9]?", name):
        raise ValueError("views are named image_view1 to image_view99")
    return name


Extensions = Annotated[Texts, AfterValidator(_known_form)]
Side = Annotated[int, Field(strict=True, ge=1)]
ImageSize = Annotated[tuple[Side, Side], BeforeValidator(same_both_ways)]
ViewName = Annotated[str, AfterValidator(_named_as_view)]


def _default_fields() -> dict[str, list[str]]:
    return {"image": ["jpg", "jpeg", "png", "webp"], "text": ["txt"]}


class SourceSpec(Spec):
    """One list of shards and how its samples are read."""

    shards: Texts = Field(
        description="WebDataset tars: a path or several, with brace ranges {00000..01099} or globs; or embedded:NAME."
    )
    weight: Positive = Field(1.0, description="How often its samples are seen, against the other sources' weights.")
    fields: Annotated[dict[Name, Extensions], Field(min_length=1)] = Field(
        default_factory=_default_fields,
        description="Field to where it is read: an extension, several (the first present counts), or json.KEY, a text "
        "or a list of texts of which one is drawn. A field `label` groups samples that are no negatives of each other.",
    )
    stream: bool = Field(
        False,
        description="Read the tars, which may be gzipped, from front to back without an index; resuming is then not exact.",
    )


class StageSpec(Spec):
    """A first part of the run that sees its data otherwise; what is left out is as for the rest of the run."""

    until: Length = Field(
        description="Where it ends, counted from the run's start: samples, epochs or steps; the next one begins at a batch."
    )
    image_size: ImageSize | None = Field(None, description="Side of images and views in pixels, or height and width.")
    text_length: Side | None = Field(None, description="Tokens of a text; longer ones are cut before their end token.")
    augment: AnyAugmentSpec | None = Field(None, description="Stands in whole for `data.augment`.")


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
    start_method: Literal["auto", "fork", "forkserver", "spawn"] = Field(
        "auto", description="How loader processes start; auto is Python's own choice for this system."
    )
    augment: AnyAugmentSpec = Field(default_factory=AugmentSpec, description="Random changes of training images.")
    views: dict[ViewName, AnyAugmentSpec] = Field(
        default_factory=dict, description="Further views of each image, image_view1 and so on, each with its `augment`."
    )
    stages: dict[Name, StageSpec] = Field(
        default_factory=dict,
        description="What comes first, in this order; after the last the run is as without stages.",
    )
    image_policy: Literal["clipkit", "open_clip"] = Field(
        "clipkit",
        description="Colour rules. clipkit: turned as EXIF says, transparency on white, 16 bits scaled. open_clip: as its "
        "trainer does (EXIF ignored, Pillow's convert).",
    )
    fast_decode: bool = Field(
        False,
        description="Decode training JPEGs of at least twice the side needed at 1/2, 1/4 or 1/8: faster, not equal.",
    )
    bad_samples: Share = Field(
        0.01, description="Share of the samples seen that may be unreadable before the run stops; each is counted."
    )
    cache: Text | None = Field(
        None, description="Folder for shard indexes and embedded data; unset: CLIPKIT_CACHE, else ~/.cache/clipkit."
    )
    trace: bool = Field(False, description="Write the keys of every batch to samples.rankR.jsonl in the run folder.")
