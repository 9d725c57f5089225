"""Open whatever the user calls DATA: shards, class folders, images with captions beside them, a CSV, a JSON."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from clipkit.evaluation.caption_json import open_caption_json
from clipkit.evaluation.folders import has_captions_beside, open_caption_folder, open_class_folders, open_csv
from clipkit.evaluation.named_sets import classnames_of, templates_of
from clipkit.evaluation.pairs import QUESTION_KEYS
from clipkit.evaluation.samples import ClassificationSet, RetrievalSet, check_templates
from clipkit.evaluation.shards import find_layout, open_classification_shards, open_retrieval_shards

_log = logging.getLogger(__name__)
_CSV = (".csv", ".tsv")
_HEAD = 1 << 16  # characters of a file that tell its task


def open_classification(
    data: str | Path, *, classnames: str | Sequence[str] | None = None, templates: str | Sequence[str] | None = None
) -> ClassificationSet:
    """Open a set for zero-shot classification: CLIP_benchmark's shards or class folders.

    Args:
        data: The folder.
        classnames: Names of the classes, instead of the set's; a text names a set of ``named_sets``.
        templates: Prompts with ``{c}``, instead of the set's; a text without it names a set.

    Raises:
        ValueError: If it cannot be used as it is, with place and cure.
    """
    path = _existing(data)
    classnames = None if classnames is None else classnames_of(classnames)
    given = None if templates is None else check_templates(templates_of(templates), "templates")
    if path.is_file():
        raise ValueError(
            f"{path}: a file; zero-shot takes a folder of CLASS/image folders or of CLIP_benchmark's shards"
        )
    if layout := find_layout(path):
        found = open_classification_shards(layout, classnames=classnames, templates=given)
    else:
        found = replace(open_class_folders(path, classnames=classnames), templates=given)
    twice = [name for name, count in Counter(found.classnames).items() if count > 1]
    if twice:
        text = "%s: %d class names occur twice (%r): they tie, so every sample of those classes counts as wrong"
        _log.warning(text, path, len(twice), twice[0])
    return found


def open_retrieval(data: str | Path, *, images: str | Path | None = None, split: str = "test") -> RetrievalSet:
    """Open a set for retrieval: CLIP_benchmark's shards, images with captions beside them, a CSV, COCO's or Karpathy's JSON.

    Args:
        data: The folder or the file.
        images: The folder of a JSON's images; None looks near it.
        split: Which split of Karpathy's JSON is read.

    Raises:
        ValueError: If it cannot be used as it is, with place and cure.
    """
    path = _existing(data)
    if path.suffix.lower() == ".json" and path.is_file():
        return open_caption_json(path, images=images, split=split)
    if images is not None or split != "test":
        raise ValueError(f"{path}: images= and split= belong to a JSON file of captions; leave them out")
    if path.is_file():
        if path.suffix.lower() not in _CSV:
            raise ValueError(
                f"{path}: a file that is no {' or '.join(_CSV)} or .json; retrieval takes a folder or one of them"
            )
        return open_csv(path)
    layout = find_layout(path)
    return open_retrieval_shards(layout) if layout else open_caption_folder(path)


Task = Literal["zero_shot", "retrieval", "multi_label", "compositional"]
_OF_SHARDS: dict[str, Task] = {"classification": "zero_shot", "retrieval": "retrieval", "multilabel": "multi_label"}


def task_of(data: str | Path) -> Task:
    """The task that a set is made for, by its content, where the user names none.

    Raises:
        ValueError: If there is no such set, or its type is unknown.
    """
    path = _existing(data)
    if path.is_file():
        found = _task_of_file(path)
        if found is None:
            raise ValueError(
                f'{path}: its first line is neither {{"image", "labels"}} (multi_label) nor a question with captions '
                "(compositional); name the task"
            )
        return found
    if layout := find_layout(path):
        return _OF_SHARDS[layout.kind]
    questions = [*path.glob("*.json"), *path.glob("*.jsonl")]
    if any(_task_of_file(file) == "compositional" for file in questions):
        return "compositional"
    return "retrieval" if has_captions_beside(path) else "zero_shot"


def _task_of_file(path: Path) -> Task | None:
    """The task by the beginning of a file; None for a JSONL of something else."""
    ending = path.suffix.lower()
    if ending not in (".json", ".jsonl"):
        return "retrieval"
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.read(_HEAD).lstrip()
    if ending == ".json":
        return "compositional" if head.startswith("[") or '"negative_caption"' in head else "retrieval"
    keys = set(re.findall(r'"(\w+)"\s*:', head.partition("\n")[0]))
    if "labels" in keys:
        return "multi_label"
    return "compositional" if keys & QUESTION_KEYS else None


def _existing(data: str | Path) -> Path:
    path = Path(os.path.abspath(Path(data).expanduser()))  # a link keeps its own name
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path of the evaluation set")
    return path
