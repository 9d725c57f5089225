"""`data:`: sources, batches, decoding and augmentation."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from clipkit.config.augment import AnyAugmentSpec, AugmentSpec, ShareAboveZero, same_both_ways
from clipkit.config.base import Length, LocatedErrors, Name, Positive, Share, Spec, Text, Texts, as_list
from clipkit.config.expression import NAME, parse_expression
from clipkit.config.short_sources import as_sources
from clipkit.config.units import Bytes, Count, CountOrAuto

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


def _checked(text: str) -> str:
    parse_expression(text)
    return text


Filter = Annotated[Text, AfterValidator(_checked)]
Column = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]


class RepeatSpec(Spec):
    """How often each sample comes in an epoch: max(1, (threshold / share of its class) ** power), times its weight."""

    by: Text | None = Field(
        None, description="The class: `label` for the field of that name, else a key of the JSON member."
    )
    threshold: ShareAboveZero = Field(0.001, description="Share of the samples below which a class is repeated.")
    power: Share = Field(0.5, description="1 brings such classes up to the threshold, 0 repeats none; LVIS takes 0.5.")
    column: Column | None = Field(None, description="Numeric column with each sample's weight; below 1 thins out.")

    @model_validator(mode="after")
    def _something(self) -> RepeatSpec:
        if self.by is None and self.column is None:
            raise ValueError("name a class (`by: KEY`) or a column of weights (`column: NAME`)")
        return self


_OF_THE_INDEX = ("filter", "keys", "skip_keys", "duplicates", "repeat")


class SourceSpec(Spec):
    """One list of shards and how its samples are read."""

    shards: Annotated[list[Text], BeforeValidator(as_list, json_schema_input_type=str | list[str])] = Field(
        default_factory=list,
        description="WebDataset tars: a path or several, with brace ranges {00000..01099} or globs; URLs of https, s3, gs or hf "
        "with brace ranges; or embedded:NAME.",
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
        "or a list of texts of which one is drawn. A field `label` groups samples that are no negatives of each other; fields teacher_NAME "
        "are embeddings in .npy members, for distillation.",
    )
    stream: bool = Field(
        False,
        description="Read the tars, which may be gzipped, from front to back without an index; resuming is then not exact.",
    )
    captions: Literal["random", "first"] = Field(
        "random", description="Which of a sample's several captions it gets: one drawn by its position, or the first."
    )
    filter: Filter | None = Field(
        None,
        description="Which samples are read, as in `similarity > 0.28 and side >= 200 and not punsafe >= 0.5`: numeric keys "
        "of the JSON member, or width, height, side, aspect, image_width, image_height, caption_length. A sample without a "
        "value that decides is left out.",
    )
    keys: Text | None = Field(
        None, description="List of the samples to keep: a text file of a key a line, or DataComp's .npy of uids."
    )
    skip_keys: Text | None = Field(None, description="List of samples to leave out, in the same forms.")
    duplicates: Literal["keep", "drop"] = Field(
        "keep", description="drop: of samples with equal image files only the first is read; reads every image once."
    )
    repeat: RepeatSpec | None = Field(None, description="Against imbalance: samples that an epoch holds several times.")

    @model_validator(mode="after")
    def _from_one_place(self) -> Self:
        if self.loose is not None and self.shards:
            raise LocatedErrors([(("loose",), "a source has either `shards` or `loose`, not both")])
        if self.loose is None and not self.shards:
            empty = "shards" in self.model_fields_set
            message = "must not be empty" if empty else "missing: the source's tars, or `loose` with a CSV or folder"
            raise LocatedErrors([(("shards",), message)])
        if self.stream and (rules := [rule for rule in _OF_THE_INDEX if getattr(self, rule) not in (None, "keep")]):
            message = "needs the index, which a stream has not; filter the shards beforehand"
            raise LocatedErrors([((rule,), message) for rule in rules])
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


class StageSpec(Spec):
    """A first part of the run that sees its data otherwise; what is left out is as for the rest of the run."""

    until: Length = Field(
        description="Where it ends, counted from the run's start: samples, epochs or steps; the next one begins at a batch."
    )
    image_size: ImageSize | None = Field(None, description="Side of images and views in pixels, or height and width.")
    text_length: Side | None = Field(None, description="Tokens of a text; longer ones are cut before their end token.")
    augment: AnyAugmentSpec | None = Field(None, description="Stands in whole for `data.augment`.")


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
    start_method: Literal["auto", "fork", "forkserver", "spawn"] = Field(
        "auto", description="How loader processes start; auto is Python's own choice for this system."
    )
    pack: PackSpec = Field(default_factory=PackSpec, description="How the `loose` sources are packed.")
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
        None,
        description="Folder for shard indexes, remote shards and embedded data; unset: CLIPKIT_CACHE, else ~/.cache/clipkit.",
    )
    cache_size: Annotated[Bytes, Field(ge=1)] | None = Field(
        None,
        description="Bytes of remote shards kept on each node, such as 200GB; unset: half of the disk's free space.",
    )
    trace: bool = Field(False, description="Write the keys of every batch to samples.rankR.jsonl in the run folder.")
