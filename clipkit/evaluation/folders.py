"""Evaluation sets of loose files: class folders, images with captions beside them, a CSV."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from clipkit.evaluation.samples import (
    IMAGE_EXTENSIONS,
    ClassificationSet,
    ImageFile,
    RetrievalSet,
    read_lines,
    read_text,
    split_captions,
)

_log = logging.getLogger(__name__)
_LOOSE = (*IMAGE_EXTENSIONS, "gif", "bmp")  # what ``decode_image`` reads
_BESIDE = {".txt", ".json", ".csv", ".tsv", ".md", ".npz", ".jsonl"}  # files that may lie among images without a word


def open_class_folders(path: Path, *, classnames: Sequence[str] | None = None) -> ClassificationSet:
    """Open ``CLASS/image`` folders: labels follow the sorted folder names, as torchvision's ``ImageFolder`` counts them.

    Args:
        path: The folder of the class folders.
        classnames: A name for each folder in sorted order; else ``classnames.txt`` of the folder, else the folders' own
            names with spaces for underscores.

    Raises:
        ValueError: If there are no images, images outside the class folders, an empty class, or another number of names.
    """
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    loose = [entry for entry in sorted(path.iterdir()) if entry.is_file() and _is_image(entry)]
    if loose and folders:
        cure = "move them into their class folder, or away"
        raise ValueError(f"{path}: {len(loose)} images lie outside the class folders ({loose[0].name}); {cure}")
    if not folders:
        what = "images but no class folders" if loose else "no images at all"
        raise ValueError(f"{path}: {what}; zero-shot takes CLASS/image folders or CLIP_benchmark's shards")
    place = path / "classnames.txt"
    if classnames is None:
        classnames = read_lines(place) if place.is_file() else [folder.name.replace("_", " ") for folder in folders]
    if len(classnames) != len(folders):
        raise ValueError(f"{path}: {len(folders)} class folders, but {len(classnames)} class names; give one a folder")
    images: list[ImageFile] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = find_images(folder)
        if not found:
            raise ValueError(f"{folder}: a class without images ({', '.join(_LOOSE)}); add some or remove it")
        images += [ImageFile(image) for image in found]
        labels += [label] * len(found)
    return ClassificationSet(path.name, images, torch.tensor(labels), tuple(classnames), templates=None)


def open_caption_folder(path: Path) -> RetrievalSet:
    """Open a folder of images with ``NAME.txt`` beside ``NAME.jpg``, one caption a line; subfolders are searched too.

    Raises:
        ValueError: If there are no images, one has no caption, or two share one caption file.
    """
    found = find_images(path)
    if not found:
        raise ValueError(f"{path}: no images at all ({', '.join(_LOOSE)}); check the path")
    captions = []
    seen: dict[Path, Path] = {}
    for image in found:
        beside = image.with_suffix(".txt")
        if beside in seen:
            raise ValueError(f"{beside} belongs to both {seen[beside].name} and {image.name}; rename one of them")
        seen[beside] = image
        captions.append(split_captions(read_text(beside)) if beside.is_file() else ())
        if not captions[-1]:
            what = "is empty" if beside.is_file() else "is missing"
            raise ValueError(f"{image}: no caption, {beside.name} {what}; write one caption a line into it")
    return RetrievalSet(path.name, [ImageFile(image) for image in found], captions)


def open_csv(path: Path) -> RetrievalSet:
    """Open a CSV with the columns ``filepath`` and ``caption`` (or ``title``, open_clip's name), comma or tab separated.

    Paths are relative to the CSV's folder. Rows of one image are its captions, wherever they stand.

    Raises:
        ValueError: If a column is missing, a row has no caption, a file does not exist, or there are no rows.
    """
    text = read_text(path)
    separator = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    columns = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    caption_column = next((name for name in ("caption", "title") if name in columns), None)
    if "filepath" not in columns or caption_column is None:
        raise ValueError(f"{path}:1: the columns are {columns}; filepath and caption (or title) are needed")
    captions: dict[Path, list[str]] = {}
    for row in rows:
        place = f"{path}:{rows.line_num}"
        if row.get(None):  # DictReader's key for what has no column
            cure = "put quotes around a caption that holds the separator"
            raise ValueError(f"{place}: more fields than the {len(columns)} columns; {cure}")
        image = path.parent / (row["filepath"] or "").strip()
        caption = (row[caption_column] or "").strip()
        if not caption:
            raise ValueError(f"{place}: {image.name} has no caption; write one or remove the row")
        if image not in captions and not image.is_file():
            raise ValueError(f"{place}: {image} does not exist; paths are relative to the folder of the CSV")
        captions.setdefault(image, []).append(caption)
    if not captions:
        raise ValueError(f"{path}: no images at all, the file has no rows")
    return RetrievalSet(
        path.stem, [ImageFile(image) for image in captions], [tuple(lines) for lines in captions.values()]
    )


def has_captions_beside(path: Path) -> bool:
    """Whether some image of the folder has a text file of its name beside it."""
    return any(image.with_suffix(".txt").is_file() for image in find_images(path, quiet=True))


def _is_image(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in _LOOSE and not path.name.startswith(".")


def find_images(folder: Path, *, quiet: bool = False) -> list[Path]:
    """The images below a folder in the order of their names; other files are counted and said."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    ignored = [path for path in files if not _is_image(path) and path.suffix.lower() not in _BESIDE]
    if ignored and not quiet:
        known = ", ".join(_LOOSE)
        _log.warning("%s: %d files are no %s and are ignored (%s)", folder, len(ignored), known, ignored[0].name)
    return [path for path in files if _is_image(path)]
