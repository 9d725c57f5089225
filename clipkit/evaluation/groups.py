"""Figures by a metadata key of the samples: where it is read, and each figure's groups, worst and gap."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clipkit import metrics
from clipkit.config.evaluate import smaller_is_better
from clipkit.config.json_text import parse_json
from clipkit.evaluation.evaluator import Figures
from clipkit.evaluation.samples import ImageFile, read_text
from clipkit.evaluation.shards import field_bytes, find_layout

_FILE = ("file", "file_name", "filename", "filepath")  # columns that say which image a row is about
_METADATA = ("metadata.csv", "metadata.jsonl")


def sample_groups(data: str | Path, images: Sequence[ImageFile], key: str) -> list[str]:
    """The group of each image, the value of one metadata key.

    Args:
        data: The set: shards whose samples hold ``.json``; a CSV with a column of that name; a folder of images with
            ``metadata.csv`` or ``metadata.jsonl``, a row an image, its path from the folder under ``file``.
        images: The images of the set (N).
        key: The key.

    Returns:
        A text an image (N); true and false are ``true`` and ``false``.

    Raises:
        ValueError: If there are no metadata, or an image lacks the key or has two values, with place and cure.
    """
    path = Path(data).expanduser().absolute()
    if layout := find_layout(path) if path.is_dir() else None:
        rows = ((str(image), str(image), _parsed(text, str(image))) for image, text in field_bytes(layout, "json"))
        return _in_order([str(image) for image in images], rows, key, path)
    file = path if path.is_file() else next((path / name for name in _METADATA if (path / name).is_file()), None)
    if file is None:
        raise ValueError(
            f"{path}: groups: {key}, but no {' and no '.join(_METADATA)} there; write file and {key} in one"
        )
    if file.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        raise ValueError(f"{file}: groups are read from shards, a CSV, or {' or '.join(_METADATA)} of a folder")
    rows = ((str((file.parent / _name_in(row, place)).absolute()), place, row) for place, row in _table(file))
    return _in_order([str(image.path.absolute()) for image in images], rows, key, file)


def group_figures(units: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]]) -> tuple[Figures, dict[str, Any]]:
    """Each figure by group.

    Args:
        units: For each figure, which is a mean, the value of each unit (U).
        groups: For each figure the group of each unit (U).

    Returns:
        ``FIGURE_worst_group`` and ``FIGURE_group_gap`` of each figure, and by figure a table: the figure of each group,
        their counts, the worst group's name, and the gap.
    """
    figures: Figures = {}
    tables: dict[str, Any] = {}
    for name, values in units.items():
        found = metrics.by_group(values, groups[name], smaller_is_better=smaller_is_better(name))
        tables[name] = found._asdict()
        figures[f"{name}_worst_group"] = found.figures[found.worst]
        figures[f"{name}_group_gap"] = found.gap
    return figures, tables


def _in_order(images: Sequence[str], rows: Iterator[tuple[str, str, Any]], key: str, place: Path) -> list[str]:
    found: dict[str, str] = {}
    for image, where, row in rows:
        value = row.get(key)
        if value is None or isinstance(value, list | dict) or value == "":
            raise ValueError(f"{where}: no value under {key!r}; there are {', '.join(map(str, row)) or 'no keys'}")
        text = value if isinstance(value, str) else json.dumps(value)
        if found.setdefault(image, text) != text:
            raise ValueError(f"{where}: {key} is {text!r}, but {found[image]!r} before; an image is of one group")
    lacking = [image for image in images if image not in found]
    if lacking:
        raise ValueError(
            f"{place}: {len(lacking):,} of {len(images):,} images have no row, such as {lacking[0]}; every image needs its {key}"
        )
    return [found[image] for image in images]


def _table(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a table, each with its place."""
    text = read_text(file)
    if file.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{file}:{number}", _parsed(line, f"{file}:{number}")
        return
    separator = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    for row in rows:
        yield (
            f"{file}:{rows.line_num}",
            {name: value.strip() for name, value in row.items() if isinstance(value, str)},
        )


def _parsed(text: str | bytes, place: str) -> Mapping[str, Any]:
    try:
        row = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{place}: its metadata are no JSON ({error})") from error
    if not isinstance(row, Mapping):
        raise ValueError(f"{place}: its metadata are no object of key and value")
    return row


def _name_in(row: Mapping[str, Any], place: str) -> str:
    name = next((row[column] for column in _FILE if row.get(column)), None)
    if not isinstance(name, str):
        raise ValueError(f"{place}: no image; write its path from the folder under {_FILE[0]!r}")
    return name
