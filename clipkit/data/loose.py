"""Loose images with captions, as people have them: what lies where, before it is packed into shards.

Images with captions beside them, class folders, tables: CSV, TSV, JSONL, parquet, what `datasets.save_to_disk` wrote, and a folder with a
metadata file. Each yields entries in a fixed order, and what it has to pass over with the cause.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from clipkit.config.json_text import parse_json

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
IMAGE_COLUMNS = ("filepath", "image", "path", "file_name", "url")
CAPTION_COLUMNS = ("caption", "title", "text")
NO_CAPTION = frozenset({"nan", "NaN", "None", "NULL", "null", "N/A", "<NA>"})
"""What programs write into a table where there is no caption."""
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of an image folder as `datasets` knows it
URL = "url"
_URL = re.compile("https?://", re.IGNORECASE)
_SEPARATORS = ("\t", ",", ";", "|")


@dataclass(frozen=True)
class Entry:
    """One image with its caption.

    Args:
        place: Where it stands, for messages.
        image: The image file, or its bytes.
        text: Its caption, the first of several.
        json: Content of its `.json`; None for none.
        label: Index of its class; None for none.
    """

    place: str
    image: Path | bytes
    text: str
    json: bytes | None = None
    label: int | None = None

    @property
    def stem(self) -> str:
        """The image file's name, for people."""
        return self.image.stem if isinstance(self.image, Path) else ""


@dataclass(frozen=True)
class Skipped:
    """Something that cannot be packed.

    Args:
        place: Where it stands.
        cause: One word, the name under which it is counted.
    """

    place: str
    cause: str


@dataclass(frozen=True)
class Loose:
    """What a source holds.

    Args:
        entries: Its images, and what is passed over, in the order to pack them.
        classnames: The classes by label; None for captions.
    """

    entries: Iterator[Entry | Skipped]
    classnames: tuple[str, ...] | None = None


def open_loose(
    source: Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    fields: tuple[str, ...] | None = None,
) -> Loose:
    """Open a source, told by its kind: a folder, `.csv`, `.tsv`, `.jsonl`, `.parquet`.

    Args:
        source: The folder or file.
        image_column: Column or key of the image's path or bytes; unset: filepath, image, path or file_name.
        caption_column: Column or key of the caption; unset: caption, title or text.
        fields: Further columns or keys of a table that are carried along as JSON.

    Raises:
        ValueError: If it does not exist, is of no known kind, or lacks a column.
    """
    images = (image_column,) if image_column else IMAGE_COLUMNS
    captions = (caption_column,) if caption_column else CAPTION_COLUMNS
    suffix = source.suffix.lower()
    keys = captions if caption_column else (*captions, "captions")
    if source.is_dir():
        beside = next((source / name for name in _METADATA if (source / name).is_file()), None)
        if beside is not None:
            return open_loose(beside, image_column=image_column, caption_column=caption_column, fields=fields)
        from clipkit.data.loose_arrow import read_columns, saved_files

        if (files := saved_files(source)) is not None:
            return Loose(read_columns(files, images, keys, fields or ()))
        if image_column or caption_column:
            raise ValueError(f"{source}: a folder has no columns; leave --image-column and --caption-column out")
        return _open_folder(source)
    if not source.is_file():
        raise ValueError(f"{source}: no such file or folder; check the path")
    if suffix in (".csv", ".tsv"):
        return Loose(_table(source, images, captions, fields or ()))
    if suffix in (".jsonl", ".ndjson"):
        return Loose(_lines(source, images, keys, fields or ()))
    if suffix in (".parquet", ".arrow"):
        from clipkit.data.loose_arrow import read_columns

        return Loose(read_columns([source], images, keys, fields or ()))
    raise ValueError(f"{source}: neither a folder nor a .csv, .tsv, .jsonl or .parquet file")


def shown(path: Path | str) -> str:
    """A path that can be printed, whatever bytes its name holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _files(folder: Path) -> Iterator[Path | Skipped]:
    """The files below a folder, sorted; hidden ones are passed over, linked folders are said (they may be loops)."""
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and entry.is_dir():
            yield Skipped(shown(entry), "linked_folder")
        elif entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _is_image(path: Path | Skipped) -> TypeGuard[Path]:
    return isinstance(path, Path) and path.suffix.lower() in SUFFIXES


def _open_folder(folder: Path) -> Loose:
    found = list(_files(folder))
    files = [entry for entry in found if isinstance(entry, Path)]
    present = set(files)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if any(path.with_suffix(beside) in present for path in images for beside in (".txt", ".json")):
        return Loose(_captioned(found, present))
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if images and not any(path.parent != folder for path in images):
        raise ValueError(
            f"{folder}: images without captions; put NAME.txt or NAME.json beside each, or use class folders"
        )
    return Loose(_classes(folder, found, classes), _classnames(folder, classes) if images else None)


def _captioned(found: list[Path | Skipped], present: set[Path]) -> Iterator[Entry | Skipped]:
    stems = {path.with_suffix("") for path in present if path.suffix.lower() in SUFFIXES}
    for path in found:
        if isinstance(path, Skipped):
            yield path
        elif path.suffix.lower() in SUFFIXES:
            yield _captioned_one(path, present)
        elif path.suffix.lower() not in (".txt", ".json"):
            yield Skipped(shown(path), "no_image_file")
        elif path.with_suffix("") not in stems:
            yield Skipped(shown(path), "caption_without_image")


def _captioned_one(image: Path, present: set[Path]) -> Entry | Skipped:
    place = shown(image)
    beside_text, beside_json = image.with_suffix(".txt"), image.with_suffix(".json")
    text, data = "", None
    try:
        if beside_text in present:
            text = beside_text.read_text(encoding="utf-8-sig").strip()
        if beside_json in present:
            data = beside_json.read_bytes()
            parsed = parse_json(data)
            if not isinstance(parsed, dict):
                return Skipped(shown(beside_json), "bad_json")
            text = text or next(iter(captions_of(parsed, ("captions", *CAPTION_COLUMNS))), "")
    except OSError:
        return Skipped(place, "unreadable")
    except UnicodeDecodeError:
        return Skipped(place, "bad_encoding")
    except ValueError:
        return Skipped(shown(beside_json), "bad_json")
    cause = _no_caption([text] if text else [])
    return Skipped(place, cause) if cause else Entry(place, image, text, data)


def _classnames(folder: Path, classes: list[Path]) -> tuple[str, ...]:
    """A `classnames.txt` of the folder, else the folders' names with spaces for underscores."""
    given = folder / "classnames.txt"
    if not given.is_file():
        return tuple(shown(entry.name).replace("_", " ") for entry in classes)
    names = tuple(line.strip() for line in given.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if len(names) != len(classes):
        raise ValueError(
            f"{given}: {len(names)} names for {len(classes)} class folders; write one a line, in sorted order"
        )
    return names


def _classes(folder: Path, found: list[Path | Skipped], classes: list[Path]) -> Iterator[Entry | Skipped]:
    names = _classnames(folder, classes)
    labels = {entry.name: label for label, entry in enumerate(classes)}
    present = {path.relative_to(folder).parts[0] for path in found if _is_image(path) and path.parent != folder}
    for entry in classes:  # its label stays, so that labels go on meaning the sorted folders
        if entry.name not in present:
            yield Skipped(shown(entry), "empty_class")
    for path in found:
        if isinstance(path, Skipped):
            yield path
        elif path == folder / "classnames.txt":
            continue
        elif path.suffix.lower() not in SUFFIXES:
            yield Skipped(shown(path), "no_image_file")
        elif path.parent == folder:
            yield Skipped(shown(path), "outside_class_folders")
        else:
            label = labels[path.relative_to(folder).parts[0]]
            yield Entry(shown(path), path, names[label], label=label)


def captions_of(row: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    """The captions under the first key that holds any: a text, or a list of texts."""
    for key in keys:
        value = row.get(key)
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        kept = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
        if kept:
            return kept
    return []


def _table(
    source: Path, images: tuple[str, ...], captions: tuple[str, ...], fields: tuple[str, ...]
) -> Iterator[Entry | Skipped]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = file.readline()
            separator, image_column, caption_column = _columns(source, header, images, captions)
            file.seek(0)
            rows = csv.reader(file, delimiter=separator, strict=True)
            names = [name.strip().lower() for name in next(rows)]
            image_at, caption_at = names.index(image_column), names.index(caption_column)
            absent = [name for name in fields if name.lower() not in names]
            if absent:
                raise ValueError(f"{source}:1: no column {', '.join(absent)}; the columns are {', '.join(names)}")
            for row in rows:
                if not row:
                    continue
                place = f"{shown(source)}:{rows.line_num}"
                if len(row) != len(names):
                    yield Skipped(place, "columns")
                    continue
                captioned = [row[caption_at].strip()] if row[caption_at].strip() else []
                more = {name: _number_or_text(row[names.index(name.lower())]) for name in fields}
                yield entry_of(place, source.parent, row[image_at], captioned, more)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{source}: cannot be read as a table in UTF-8 ({error}); write it again") from error


def _columns(source: Path, header: str, images: tuple[str, ...], captions: tuple[str, ...]) -> tuple[str, str, str]:
    """The separator and the two columns: the first separator that the header makes sense with."""
    best: list[str] = []
    for separator in _SEPARATORS:
        names = [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]
        image = next((name for name in images if name.lower() in names), None)
        caption = next((name for name in captions if name.lower() in names), None)
        if image is not None and caption is not None:
            return separator, image.lower(), caption.lower()
        best = max(best, names, key=len)
    needed = f"one of {', '.join(images)} and one of {', '.join(captions)}"
    cure = "name them with --image-column and --caption-column"
    raise ValueError(f"{source}:1: the columns are {', '.join(best) or 'none'}; needed: {needed}; {cure}")


def _number_or_text(value: str) -> int | float | str:
    """A cell as JSON says it best; filters compare numbers."""
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    return value


def _lines(
    source: Path, images: tuple[str, ...], captions: tuple[str, ...], fields: tuple[str, ...]
) -> Iterator[Entry | Skipped]:
    with source.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{shown(source)}:{number}"
            if not line.strip():
                continue
            try:
                row = parse_json(line.decode("utf-8-sig"))
            except ValueError:
                row = None
            if not isinstance(row, dict):
                yield Skipped(place, "bad_json")
                continue
            image = next((row[key] for key in images if isinstance(row.get(key), str)), "")
            several = any(isinstance(row.get(key), list) for key in captions)
            texts = captions_of(row, captions)
            more = {name: row[name] for name in fields if name in row}
            yield entry_of(place, source.parent, image, texts, {"captions": texts} | more if several else more)


def entry_of(
    place: str, folder: Path, image: str | bytes, captions: list[str], metadata: Mapping[str, Any]
) -> Entry | Skipped:
    """A row as an entry, or why it is none."""
    image = image.strip() if isinstance(image, str) else image
    if not image:
        return Skipped(place, "no_image_path")
    if isinstance(image, str) and _URL.match(image):
        return Skipped(f"{place} ({shown(image)})", URL)
    cause = _no_caption(captions)
    if cause:
        return Skipped(place, cause)
    data = json.dumps(metadata, ensure_ascii=False).encode("utf-8", "replace") if metadata else None
    text = " ".join(captions[0].splitlines())  # a `.txt` has a caption a line; a cell is one
    if isinstance(image, bytes):
        return Entry(place, image, text, data)
    return Entry(f"{place} ({shown(image)})", folder / image, text, data)


def _no_caption(captions: list[str]) -> str | None:
    """The cause why there is no caption, if there is none."""
    if not captions:
        return "no_caption"
    return "nan_caption" if all(text in NO_CAPTION for text in captions) else None
