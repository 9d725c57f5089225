"""Zero-shot classification with several labels an image: mean average precision, area and 11-point."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipkit import metrics
from clipkit.config.json_text import parse_json
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Figures, Findings
from clipkit.evaluation.named_sets import classnames_of, templates_of
from clipkit.evaluation.prompts import DEFAULT_TEMPLATES
from clipkit.evaluation.samples import ImageFile, check_templates, read_lines, read_text
from clipkit.evaluation.shards import Layout, field_bytes, find_layout, require_kind

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MultiLabelSet:
    """Images with any number of labels each.

    Args:
        name: What results call it.
        images: Where the images lie (N).
        targets: Whether an image has a label (N, C), bool.
        classnames: Name of each class, by label (C).
        templates: Prompts with ``{c}``, or None where the set brings none.
    """

    name: str
    images: Sequence[ImageFile]
    targets: Tensor
    classnames: tuple[str, ...]
    templates: tuple[str, ...] | None


def open_multi_label(data: str | Path, classnames: Sequence[str] | None = None) -> MultiLabelSet:
    """Open CLIP_benchmark's multi-label shards (``.npy`` of 0 and 1 a sample), or a JSONL.

    A line of the JSONL is ``{"image": "a.jpg", "labels": ["dog", "person"]}``, paths from its folder; class names are
    those of ``classnames.txt`` beside it, else the labels that occur, sorted.

    Args:
        data: The folder of the shards, or the JSONL.
        classnames: Names of the classes, instead of the set's.

    Raises:
        ValueError: If it cannot be used as it is, with place and cure.
    """
    path = Path(data).expanduser().absolute()
    if path.is_file() and path.suffix == ".jsonl":
        return _open_jsonl(path, classnames)
    layout = find_layout(path) if path.is_dir() else None
    if layout is None:
        raise ValueError(f"{path}: several labels an image come as CLIP_benchmark's shards or as a .jsonl")
    return _open_shards(layout, classnames)


def _open_shards(layout: Layout, classnames: Sequence[str] | None) -> MultiLabelSet:
    require_kind(layout, "multilabel", "multi_label")
    names = tuple(classnames or read_lines(layout.root / "classnames.txt"))
    images, rows = [], []
    for image, data in field_bytes(layout, "npy"):
        try:
            row = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{image}: its .npy cannot be read ({error}); pack the set again") from error
        if len(row) != len(names):
            raise ValueError(f"{image}: its .npy holds {len(row)} labels, but there are {len(names)} class names")
        if not np.isin(row, (0, 1)).all():
            raise ValueError(f"{image}: its .npy holds {row.tolist()}; each label is 0 or 1")
        images.append(image)
        rows.append(torch.from_numpy(row.astype(bool)))
    templates = layout.root / "zeroshot_classification_templates.txt"
    own = check_templates(read_lines(templates), str(templates)) if templates.is_file() else None
    return MultiLabelSet(layout.root.name, images, torch.stack(rows), names, own)


def _open_jsonl(path: Path, classnames: Sequence[str] | None) -> MultiLabelSet:
    images, labels = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        place = f"{path}:{number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{place}: no JSON ({error}); write one object a line") from error
        good = isinstance(row, dict) and isinstance(row.get("image"), str) and isinstance(row.get("labels"), list)
        if not good or not all(isinstance(label, str) for label in row["labels"]):
            raise ValueError(f'{place}: {line[:80]}; write {{"image": PATH, "labels": [NAME, ...]}}')
        image = path.parent / row["image"]
        if not image.is_file():
            raise ValueError(f"{place}: {image} does not exist; paths are relative to the folder of the JSONL")
        images.append(ImageFile(image))
        labels.append(row["labels"])
    if not images:
        raise ValueError(f"{path}: no images at all, the file has no lines")
    beside = path.parent / "classnames.txt"
    occurring = sorted({name for row in labels for name in row})
    names = tuple(classnames or (read_lines(beside) if beside.is_file() else occurring))
    number_of = {name: number for number, name in enumerate(names)}
    unknown = [name for name in occurring if name not in number_of]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} labels are no class names ({unknown[0]!r}); add them to classnames.txt"
        )
    targets = torch.zeros(len(images), len(names), dtype=torch.bool)
    for row, present in enumerate(labels):
        targets[row, [number_of[name] for name in present]] = True
    return MultiLabelSet(path.stem, images, targets, names, None)


class MultiLabel:
    """Mean average precision without training. The set is opened at once, so mistakes show at start.

    Args:
        data: CLIP_benchmark's multi-label shards, or a JSONL.
        templates: Prompts with ``{c}``, or the name of a set of them, instead of the set's; ``prompts.DEFAULT_TEMPLATES``
            where the set has none.
        classnames: Names of the classes, or the name of a set of them, instead of the set's.

    Raises:
        ValueError: If the set cannot be used as it is, with place and cure.
    """

    task = "zeroshot_classification"  # CLIP_benchmark's name: it tells by the targets

    def __init__(
        self,
        data: str | Path,
        *,
        templates: str | Sequence[str] | None = None,
        classnames: str | Sequence[str] | None = None,
    ) -> None:
        self.data = open_multi_label(data, None if classnames is None else classnames_of(classnames))
        given = None if templates is None else check_templates(templates_of(templates), "templates")
        self.templates = given or self.data.templates or DEFAULT_TEMPLATES
        if given is None and self.data.templates is None:
            _log.warning("%s brings no templates: %s are used", data, " and ".join(map(repr, DEFAULT_TEMPLATES)))
        lacking = int((~self.data.targets.any(0)).sum())
        if lacking:
            _log.warning("%s: %d classes occur in no image and are left out of the means", data, lacking)

    def run(self, encodings: Encodings) -> Findings:
        """Score every image against every class.

        Args:
            encodings: The encoder's embeddings, the same on every rank.

        Returns:
            ``mean_average_precision`` (area under the curve, CLIP_benchmark's), ``mean_average_precision_11_point``
            (PASCAL VOC's, the one of CLIP's tables), means over classes that occur; ``mean_average_precision_chance``,
            the mean share of right images; ``samples``. Details: ``per_class``.

        Raises:
            ValueError: If no class occurs, or an image cannot be read, with its name.
        """
        classes = encodings.classes(self.data.classnames, self.templates)
        image, targets = encodings.images(self.data.images), self.data.targets
        present = targets.any(0)
        if not present.any():
            raise ValueError(f"{self.data.name}: no image has any label; check the targets")
        scores = torch.cat([metrics.cosines(image[rows], classes) for rows in metrics.tiles(len(image), metrics.TILE)])
        area, eleven = metrics.average_precision(scores, targets), metrics.eleven_point_precision(scores, targets)
        figures: Figures = {
            "mean_average_precision": float(area[present].mean()),
            "mean_average_precision_11_point": float(eleven[present].mean()),
            "mean_average_precision_chance": float(targets[:, present].double().mean()),
            "samples": len(image),
        }
        rows = zip(self.data.classnames, area.tolist(), eleven.tolist(), targets.sum(0).tolist(), strict=True)
        per_class = [
            {
                "class": name,
                "average_precision": precision if support else None,
                "average_precision_11_point": at_eleven if support else None,
                "support": support,
            }
            for name, precision, at_eleven, support in rows
        ]
        return Findings(figures, details={"per_class": per_class})
