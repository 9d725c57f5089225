"""A source of samples: its shards, its weight, and which member of a sample each field is read from."""

from __future__ import annotations

import glob
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

from braceexpand import braceexpand

from clipkit.data.urls import PIPE, check_url, is_remote, pattern_of, read_pipe, shown

_log = logging.getLogger(__name__)
_MOST_SHARDS = 1_000_000
FIELDS = ("image", "text", "label")
TEACHER = "teacher_"
"""Fields of names that begin so are embeddings made beforehand."""
DEFAULT_FIELDS = {"image": ("jpg", "jpeg", "png", "webp"), "text": ("txt",)}


class Place(NamedTuple):
    """Where a field's value is.

    Args:
        extension: The member's extension.
        key: For ``json.KEY`` the key of the member's object, else empty.
    """

    extension: str
    key: str = ""


def parse_place(text: str) -> Place:
    """Read ``jpg`` or ``json.caption``.

    Example:
        >>> parse_place("seg.png"), parse_place("json.caption")
        (Place(extension='seg.png', key=''), Place(extension='json', key='caption'))
    """
    if text.startswith("json.") and len(text) > len("json."):
        return Place("json", text.removeprefix("json."))
    return Place(text.lower())


@dataclass(frozen=True)
class Repeat:
    """How often each sample of a source is planned in an epoch (`clipkit.data.repeats`); both factors multiply.

    Args:
        by: A class: the field ``label``, or a key of the JSON; rare classes are repeated.
        threshold: Share of the samples below which a class is repeated.
        power: 1 brings every such class up to the threshold, 0 repeats none.
        column: A column that holds each sample's weight; below 1 it thins out.
    """

    by: str | None = None
    threshold: float = 0.001
    power: float = 0.5
    column: str | None = None


@dataclass(frozen=True)
class Source:
    """Shards that are mixed into a run with one weight.

    Args:
        name: Its name in the configuration and in every report.
        shards: Paths or URLs of plain tars.
        weight: Its share of the samples trained on, relative to the other sources' weights, whatever its size.
        fields: Per field the places it may be in, the first that a sample has: an extension or ``json.KEY``.
        stream: Whether they are read from front to back, without an index.
        captions: Which of several a sample gets: one drawn by its position, or the first.
        filter: What samples must fulfil, in the language of `clipkit.config.expression`.
        keys: List of the samples to keep (`clipkit.data.key_list`).
        skip_keys: List of samples to leave out.
        duplicates: Whether of samples with equal images only the first is kept.
        repeat: How often each sample is planned in an epoch; None is once.
    """

    name: str
    shards: tuple[str, ...]
    weight: float = 1.0
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(DEFAULT_FIELDS))
    stream: bool = False
    captions: Literal["random", "first"] = "random"
    filter: str | None = None
    keys: str | None = None
    skip_keys: str | None = None
    duplicates: Literal["keep", "drop"] = "keep"
    repeat: Repeat | None = None

    def __post_init__(self) -> None:
        if not self.shards:
            raise ValueError(f"source {self.name!r} has no shards; name at least one .tar")
        unknown = [name for name in self.fields if name not in FIELDS and not name.startswith(TEACHER)]
        if unknown or not self.fields:
            known = f"{', '.join(FIELDS)} and {TEACHER}NAME"
            raise ValueError(f"source {self.name!r}: fields {list(self.fields)}; known are {known}")

    def places(self) -> dict[str, tuple[Place, ...]]:
        """Per field where its value may be."""
        return {name: tuple(parse_place(text) for text in texts) for name, texts in self.fields.items()}


def expand_shards(pattern: str, *, allow_pipe: bool = False) -> list[str]:
    """The shards that a pattern names.

    Args:
        pattern: A path with brace ranges (``{00000..01099}``) and wildcards, a folder (all its ``*.tar``), or a URL with brace ranges. A
            ``pipe:`` of aws, curl, gsutil and the like is read as the URL that it copies.
        allow_pipe: Whether another ``pipe:`` may run its program; only a user at the command line can say so, never a file.

    Returns:
        Paths, sorted within each wildcard, or URLs.

    Raises:
        ValueError: If there is none, or one that a range names is missing.
    """
    try:
        names = list(islice(braceexpand(os.path.expanduser(pattern)), _MOST_SHARDS + 1))
    except ValueError as error:
        raise ValueError(f"shards {shown(pattern)!r}: {error}; ranges look like {{00000..01099}}") from error
    if len(names) > _MOST_SHARDS:
        raise ValueError(f"shards {shown(pattern)!r}: more than {_MOST_SHARDS:,} names; is the range right?")
    if is_remote(pattern):
        return _remote(pattern, names, allow_pipe)
    found: list[str] = []
    missing: list[str] = []
    for name in names:
        if glob.has_magic(name):
            found += sorted(glob.glob(name))
            continue
        try:
            mode = os.stat(name).st_mode  # once: a network file system answers slowly, and there may be 100,000
        except (OSError, ValueError):
            missing.append(name)
            continue
        if stat.S_ISDIR(mode):
            found += sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))
        else:
            found.append(name)
    if missing:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        text = (
            f"shards {pattern!r}: {len(missing):,} of {len(names):,} files are missing: {', '.join(missing[:3])}{more}"
        )
        raise ValueError(text + "; mend the range, or use a wildcard (*.tar) if numbers may be left out")
    if not found:
        raise ValueError(f"shards {pattern!r}: no file matches; check the path")
    return found


def _remote(pattern: str, names: list[str], allow_pipe: bool) -> list[str]:
    """URLs, with pipes read as such; whether they are there is known when they are fetched."""
    if pattern.startswith(PIPE):
        urls = [read_pipe(name) for name in names]
        if all(urls):
            names = [url for url in urls if url]
            _log.warning("%s is read as %s; no program is run", shown(pattern), pattern_of(names))
        elif allow_pipe:
            return names
        else:
            cure = "name the URL that it reads (https, s3, gs, hf), or start with --allow-pipe if you trust the command"
            raise ValueError(f"shards {shown(pattern)!r}: programs are not run; {cure}")
    for name in names:
        check_url(name)
    return names
