"""Sets that ask which caption belongs to which image: a generic ``pairs.jsonl``, Winoground's, SugarCrepe's and ARO's files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.config.json_text import parse_json
from clipkit.evaluation.samples import ImageFile, read_text

_log = logging.getLogger(__name__)
QUESTION_KEYS = frozenset({"captions", "caption_0", "true_caption", "caption_options"})
"""Keys of which a line of a JSONL of questions has one."""
_WRITE = '{"image": PATH, "captions": [RIGHT, WRONG, ...]} or {"images": [A, B], "captions": [OF_A, OF_B]}'


@dataclass(frozen=True)
class Question:
    """One image and captions of which the first is right, or two images and the caption of each.

    Args:
        images: One or two.
        captions: Two or more for one image, two for two; the i-th belongs to the i-th image.
        group: Which part of the set it belongs to.
    """

    images: tuple[ImageFile, ...]
    captions: tuple[str, ...]
    group: str


def open_pairs(data: str | Path, images: str | Path | None = None) -> list[Question]:
    """Open a set of questions.

    A ``.jsonl`` holds one object a line: ``{"image", "captions", "group"}``, ``{"images", "captions", "group"}``, or
    Winoground's ``{"image_0", "image_1", "caption_0", "caption_1"}``. A ``.json``, or a folder of them (each file is a
    group), holds SugarCrepe's ``{ID: {"filename", "caption", "negative_caption"}}``, or a list of ARO's
    ``{"image_path", "true_caption", "false_caption", "bbox_x", "bbox_y", "bbox_w", "bbox_h"}`` (the box is cut out; the
    group is its ``relation_name``, or both ``attributes``) or of its order sets' ``{"image", "caption_options"}``, the right
    one first. Those sets are shuffled at random: a shuffle that leaves the caption as it was, or twice the same, is left
    out, a question without any other too, and counted.

    Args:
        data: The file or the folder.
        images: The folder of the images; unset: ``images`` beside the file where there is one, else the file's folder.

    Raises:
        ValueError: If it cannot be used as it is, with place and cure.
    """
    path = Path(data).expanduser().absolute()
    if path.is_dir():
        files = sorted(path.glob("*.json")) or sorted(path.glob("*.jsonl"))
    else:
        files = [path] if path.is_file() and path.suffix in (".json", ".jsonl") else []
    if not files:
        raise ValueError(f"{path}: no .jsonl and no .json; {_WRITE}, one a line of a .jsonl")
    found = []
    for file in files:
        beside = file.parent / "images"
        folder = Path(images).expanduser() if images is not None else beside if beside.is_dir() else file.parent
        found += [_question(row, place, folder, file.stem) for place, row in _rows(file)]
    asked = len(found)
    found = [question for question in found if len(question.captions) > 1]
    if len(found) < asked:
        _log.warning(
            "%s: %d of %d questions have no other caption than the right one: left out", path, asked - len(found), asked
        )
    if not found:
        raise ValueError(f"{path}: no questions at all")
    return found


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    text = read_text(file)
    lines = [text] if file.suffix == ".json" else [line for line in text.split("\n") if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{file}:{number}: no JSON ({error})") from error
        if file.suffix == ".jsonl":
            yield f"{file}:{number}", row
            continue
        if not isinstance(row, Mapping | list):
            raise ValueError(f"{file}: a mapping of id to question is needed, as SugarCrepe's, or a list, as ARO's")
        rows = row.items() if isinstance(row, Mapping) else enumerate(row)
        yield from ((f"{file}, {key}", value) for key, value in rows)


def _question(row: Any, place: str, folder: Path, group: str) -> Question:
    if not isinstance(row, Mapping):
        raise ValueError(f"{place}: {str(row)[:80]} is no object; write {_WRITE}")
    names: Any
    captions: Any
    if "negative_caption" in row:
        names, captions = [row.get("filename")], [row.get("caption"), row["negative_caption"]]
    elif "image_0" in row:
        names = [row["image_0"], row.get("image_1")]
        names = [name if not isinstance(name, str) or Path(name).suffix else f"{name}.png" for name in names]
        captions = [row.get("caption_0"), row.get("caption_1")]
    elif "true_caption" in row:
        names, captions = [row.get("image_path")], [row["true_caption"], row.get("false_caption")]
    else:
        names, captions = row.get("images", [row.get("image")]), row.get("captions", row.get("caption_options"))
    lists = isinstance(names, list) and isinstance(captions, list)
    if not lists or not all(isinstance(text, str) and text.strip() for text in [*names, *captions]):
        raise ValueError(f"{place}: an image or a caption is missing or is no text; write {_WRITE}")
    shuffled = "caption_options" in row and len(captions) > 1
    if shuffled:
        captions = list(dict.fromkeys(captions))
    if not shuffled and not ((len(names) == 1 and len(captions) >= 2) or len(names) == len(captions) == 2):
        raise ValueError(f"{place}: {len(names)} images and {len(captions)} captions; write {_WRITE}")
    if len(set(captions)) < len(captions):
        raise ValueError(f"{place}: the same caption twice ({captions[0]!r}); it ties, and the question has no answer")
    files = [folder / name for name in names]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ValueError(f"{place}: {missing} does not exist; say where the images are with the option images")
    box = _box(row, place)
    return Question(tuple(ImageFile(file, box=box) for file in files), tuple(captions), _group(row, group))


def _group(row: Mapping[str, Any], otherwise: str) -> str:
    if "relation_name" in row:
        return str(row["relation_name"])
    if isinstance(row.get("attributes"), list):
        return "_".join(map(str, row["attributes"]))
    return str(row.get("group", row.get("tag") or otherwise))


def _box(row: Mapping[str, Any], place: str) -> tuple[int, int, int, int] | None:
    """ARO's box, from left, top, width and height."""
    if "bbox_w" not in row:
        return None
    sides = [row.get(f"bbox_{side}") for side in "xywh"]
    x, y, width, height = (side if type(side) is int else None for side in sides)
    if x is None or y is None or width is None or height is None or width <= 0 or height <= 0:
        raise ValueError(f"{place}: the box {sides} is no left, top, width and height in whole pixels")
    return x, y, x + width, y + height
