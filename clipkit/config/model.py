"""`model:`: which towers to start from."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from clipkit.config.base import Spec, Text

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


class ModelSpec(Spec):
    """The model to train; `NAME` or `NAME:tag` is its short form."""

    name: Text = Field(
        description="An open_clip model name, the path of an open_clip JSON configuration, a run folder, one of its "
        "checkpoints, an exported folder, an open_clip .pt file, or hf-hub:org/repo."
    )
    pretrained: Text | None = Field(
        None, description="Weights to start from: an open_clip tag, or a file. Without it a named model starts random."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return split_model(value) if isinstance(value, str) else value
