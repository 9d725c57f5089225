"""One hash for values of every kind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.evaluation.samples import ImageFile


def digest(value: Any) -> str:
    """The sha256 of a value made of tensors, texts, numbers, sequences, mappings, files and data classes; where a file lies does not matter.

    >>> digest({"a": [1, 2.5], "b": None}) == digest({"b": None, "a": (1, 2.5)})
    True
    """
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        state.update(f"tensor {plain.dtype} {tuple(plain.shape)}".encode())
        state.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
    elif isinstance(value, ImageFile):
        size = value.path.stat().st_size if value.length is None else value.length
        name = "/".join(value.path.parts[-2:]) if value.key is None else f"{value.path.name} {value.key} {value.offset}"
        box = "" if value.box is None else f" {value.box}"
        state.update(f"file {name} {size}{box};".encode(errors="surrogateescape"))
    elif isinstance(value, Path):
        state.update(f"path {value.name};".encode(errors="surrogateescape"))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            state.update(f"key {key};".encode())
            _feed(state, value[key])
    elif isinstance(value, str) or not isinstance(value, Sequence):
        _feed_one(state, value)
    else:
        state.update(f"sequence {len(value)};".encode())
        for part in value:
            _feed(state, part)


def _feed_one(state: Any, value: Any) -> None:
    if dataclasses.is_dataclass(value):
        _feed(state, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif value is None or isinstance(value, str | int | float | bool):
        text = json.dumps(value)
        state.update(f"{len(text)} {text};".encode())
    elif hasattr(value, "__dict__"):
        _feed(state, {"class": type(value).__name__, **vars(value)})
    else:
        state.update(repr(value).encode())
