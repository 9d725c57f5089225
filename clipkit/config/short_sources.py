"""`data.train=pairs.csv`: a path where sources are asked for is one source, named after the file."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

_SHARDS = re.compile(r"\.tar\b|^embedded:|^pipe:")
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


def as_sources(value: Any) -> Any:
    """Write a path out as a mapping by name; anything else, and a text that is still to be filled in, stays as it is.

    Nothing is looked at on the disk: tars are shards by their name, all else is loose until the run starts.

    >>> as_sources("/data/my pairs.csv")
    {'my-pairs': {'loose': '/data/my pairs.csv'}}
    >>> as_sources("/data/cc12m/{00000..01099}.tar")
    {'cc12m': {'shards': '/data/cc12m/{00000..01099}.tar'}}
    """
    if not isinstance(value, str) or not value.strip() or value == "???" or "${" in value:
        return value
    shards = _SHARDS.search(value) is not None
    return {_name(value, shards=shards): {"shards" if shards else "loose": value}}


def _name(path: str, *, shards: bool) -> str:
    stem = PurePath(path.removeprefix("embedded:")).stem
    if shards:
        stem = re.split(r"[{*?\[]", stem)[0]
        if not re.search("[A-Za-z]", stem):  # 00000.tar and *.tar are called as their folder is
            stem = PurePath(path).parent.name
    return _UNFIT.sub("-", stem).strip("-") or "train"
