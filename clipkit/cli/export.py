"""``clipkit export``: files for other programs, each with its proof and its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipkit.callbacks.say import say
from clipkit.exporters.candidate import Format
from clipkit.exporters.folder import require_free
from clipkit.exporters.formats import make_format
from clipkit.exporters.handover import make_ready
from clipkit.exporters.push import Push, check_repository, push


@dataclass(frozen=True)
class Asked:
    """The command line of ``clipkit export``."""

    model: str
    formats: Sequence[str]
    out: Path
    options: Sequence[str] = ()
    merge: Sequence[str] = ()
    weights: Sequence[float] = ()
    average: bool = True
    licence: str | None = None
    force: bool = False
    push: str | None = None
    public: bool = False
    dry_run: bool = False


def export_all(asked: Asked) -> None:
    """Load a model once and write it in each format, into ``out``, or ``out/FORMAT`` where there are several.

    Raises:
        ValueError: If anything that was asked for cannot be had; what can be seen before is refused before anything is written.
    """
    _check_push(asked)
    formats = _formats(asked)
    for place in formats:
        require_free(place, force=asked.force)
    ready = make_ready(
        asked.model,
        merge_with=asked.merge,
        weights=asked.weights,
        average=asked.average,
        licence=asked.licence,
        say=say,
    )
    for format in formats.values():
        format.refuse(ready.encoder)
    for place, format in formats.items():
        report = ready.export(format, place, force=asked.force)
        print("\n".join(report.lines()))
        print(f"written to {place}")
    if asked.push is not None:
        what = Push(asked.out, asked.push, asked.public)
        print("\n".join(what.lines()))
        print("nothing was uploaded (--dry-run)" if asked.dry_run else f"pushed: {push(what)}")


def _check_push(asked: Asked) -> None:
    if asked.push is None:
        if asked.public or asked.dry_run:
            raise ValueError("--public and --dry-run say how to --push; name the repository with --push org/repo")
        return
    check_repository(asked.push)
    if len(asked.formats) > 1:
        raise ValueError(
            "--push takes one --format: a repository holds the files of one where its readers look for them"
        )


def _formats(asked: Asked) -> dict[Path, Format]:
    """Each format with its folder, before anything is loaded."""
    if len(set(asked.formats)) < len(asked.formats):
        raise ValueError(f"--format {' '.join(asked.formats)}: one is named twice")
    several = len(asked.formats) > 1
    options = [_option(text, asked.formats) for text in asked.options]
    return {
        asked.out / name if several else asked.out: make_format(name, {key: x for to, key, x in options if to == name})
        for name in asked.formats
    }


def _option(text: str, formats: Sequence[str]) -> tuple[str, str, Any]:
    """The format that an option is for, its key, and its value as YAML reads it."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ValueError(f"--option {text}: write key=value")
    named, dot, rest = key.partition(".")
    if dot and named in formats:
        return named, rest, yaml.safe_load(value)
    if len(formats) > 1:
        raise ValueError(f"--option {text}: there are several formats; write {formats[0]}.{key}={value}, say")
    return formats[0], key, yaml.safe_load(value)
