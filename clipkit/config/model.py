"""`model:`: which towers to start from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from clipkit.config.base import Name, Spec, Text
from clipkit.config.units import Count

_SCHEMES = ("hf-hub", "local-dir", "http", "https", "s3", "gs", "file")


def split_model(text: str) -> dict[str, str | None]:
    """Cut `NAME[:tag]` into its parts; paths and `hf-hub:org/repo` stay whole.

    >>> split_model("ViT-B-32:laion2b_s34b_b79k")
    {'name': 'ViT-B-32', 'pretrained': 'laion2b_s34b_b79k'}
    >>> split_model("hf-hub:org/repo")
    {'name': 'hf-hub:org/repo', 'pretrained': None}
    """
    name, colon, tag = text.partition(":")
    if not colon or "/" in name or "\\" in name or name in _SCHEMES:
        return {"name": text, "pretrained": None}
    return {"name": name, "pretrained": tag}


def _whole_towers(value: Any) -> Any:
    """`lock: image` and `lock: [image, text]` lock whole towers."""
    names = [value] if isinstance(value, str) else value
    return {name: {} for name in names} if isinstance(names, list) else value


class LockSpec(Spec):
    """How much of a tower stays as it is."""

    unlocked: Count = Field(0, description="Layers nearest to the output that train on; the projection is the first.")


class ModelSpec(Spec):
    """The model to train; `NAME` or `NAME:tag` is its short form."""

    name: Text = Field(
        description="An open_clip model name, the path of an open_clip JSON configuration, a run folder, one of its "
        "checkpoints, an exported folder, an open_clip .pt file, or hf-hub:org/repo."
    )
    pretrained: Text | None = Field(
        None, description="Weights to start from: an open_clip tag, or a file. Without it a named model starts random."
    )

    lock: Annotated[
        dict[Name, LockSpec],
        BeforeValidator(_whole_towers, json_schema_input_type=str | list[str] | dict[str, LockSpec]),
    ] = Field(
        default_factory=dict,
        description="Towers that do not train (LiT): `image`, a list, or `{image: {unlocked: 2}}`; what is locked runs in "
        "evaluation, without dropout.",
    )
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the image's patches left out in training (FLIP); transformers only."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return split_model(value) if isinstance(value, str) else value
