"""``clipkit export``: files for other programs, each with its proof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipkit import api
from clipkit.exporters.formats import make_format


def export_all(model: str, formats: Sequence[str], *, out: Path, options: Sequence[str], force: bool) -> None:
    """Load a model once and write it in each format, into ``out``, or ``out/FORMAT`` where there are several.

    Raises:
        ValueError: If a format or option is unknown, or a folder is taken.
    """
    if len(set(formats)) < len(formats):
        raise ValueError(f"--format {' '.join(formats)}: one is named twice")
    chosen = dict(_option(text) for text in options)
    for name in formats:
        make_format(name, chosen)  # before anything is loaded
    encoder = api.load(model)
    for name in formats:
        place = out if len(formats) == 1 else out / name
        report = api.export(encoder, name, place, options=chosen, force=force)
        print("\n".join(report.lines()))
        print(f"written to {place}")


def _option(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ValueError(f"--option {text}: write key=value")
    return key, value
