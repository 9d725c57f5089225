"""Zero-shot classification with an ensemble of prompts (CLIP, section 3.1.4)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit import metrics
from clipkit.config.evaluate import GROUP_FIGURES
from clipkit.evaluation.calibration import calibrated
from clipkit.evaluation.class_prompts import class_prompts, own_prompts
from clipkit.evaluation.datasets import open_classification
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Figures, Findings
from clipkit.evaluation.groups import group_figures, sample_groups
from clipkit.evaluation.prompts import DEFAULT_TEMPLATES

_log = logging.getLogger(__name__)
CONFUSIONS = 50  # that are told


class ZeroShot:
    """Accuracy, tables and calibration without training. The set is opened at once, so mistakes show at start.

    Args:
        data: CLIP_benchmark's shards or class folders.
        templates: Prompts with ``{c}``, or the name of a set of them (``openai80``), instead of the set's;
            ``prompts.DEFAULT_TEMPLATES`` where the set has none.
        classnames: Names of the classes, or the name of a set of them (``imagenet1k``), instead of the set's.
        prompts: Prompts of each class's own instead of templates: class name to texts, or a JSON or YAML file of that;
            unset: ``class_prompts.json`` or ``.yaml`` of the set, where it has one and no templates are given.
        groups: A metadata key of the samples (``groups.sample_groups``): accuracy by its values besides.

    Raises:
        ValueError: If the set cannot be used as it is, with place and cure.
    """

    task = "zeroshot_classification"  # CLIP_benchmark's name

    def __init__(
        self,
        data: str | Path,
        *,
        templates: str | Sequence[str] | None = None,
        classnames: str | Sequence[str] | None = None,
        prompts: str | Path | Mapping[str, Any] | None = None,
        groups: str | None = None,
    ) -> None:
        if prompts is not None and templates is not None:
            raise ValueError(
                "templates and prompts are both given; take prompts for texts of each class's own, else templates"
            )
        self.data = open_classification(data, classnames=classnames, templates=templates)
        chosen = prompts if prompts is not None or templates is not None else own_prompts(Path(data).expanduser())
        self.prompts = None if chosen is None else class_prompts(chosen, self.data.classnames)
        self.templates = self.data.templates or DEFAULT_TEMPLATES
        self.groups = None if groups is None else sample_groups(data, self.data.images, groups)
        if self.data.templates is None and self.prompts is None:
            _log.warning("%s brings no templates: %s are used", data, " and ".join(map(repr, DEFAULT_TEMPLATES)))

    def run(self, encodings: Encodings) -> Findings:
        """Classify every image.

        Args:
            encodings: The encoder's embeddings, the same on every rank.

        Returns:
            ``acc1``, ``acc5`` (None with fewer than 5 classes), ``mean_per_class_recall``, ``macro_precision`` to
            ``weighted_f1``, ``ece`` (15 bins of equal width, the model's own scale; None where it has none) and
            ``samples``; with groups ``acc1`` and ``acc5`` of the worst, ``..._worst_group``, and the distance of worst and
            best, ``..._group_gap``. Details: ``per_class``, the fullest ``confusions``, ``calibration`` and ``groups``.

        Raises:
            ValueError: If an image cannot be read, with its name.
        """
        named = self.prompts is None
        classes = (
            encodings.classes(self.data.classnames, self.templates) if named else encodings.prompts(self.prompts or ())
        )
        image = encodings.images(self.data.images)
        labels, count = self.data.labels, len(classes)
        ranks, predicted = torch.empty_like(labels), torch.empty_like(labels)
        for rows in metrics.tiles(len(image), metrics.TILE):
            scores = metrics.cosines(image[rows], classes)
            ranks[rows] = metrics.label_ranks(scores, labels[rows])
            predicted[rows] = metrics.predictions(scores, labels[rows])
        calibration = calibrated(image, classes, labels, ranks == 0, _scale_of(encodings))
        figures: Figures = {
            "acc1": metrics.recall_at(ranks, 1),
            "acc5": metrics.recall_at(ranks, 5) if count >= 5 else None,
            "mean_per_class_recall": metrics.mean_per_class_recall(ranks == 0, labels),
        }
        figures |= metrics.averages(predicted, labels, count)
        error = calibration["ece_width"]  # to six places: other batches mean other last bits of float32 embeddings
        figures |= {"ece": None if error is None else round(error, 6), "samples": len(image)}
        hits = {"acc1": ranks < 1, "acc5": ranks < 5, "mean_per_class_recall": ranks < 1}
        outcomes = {name: hit for name, hit in hits.items() if figures[name] is not None}
        details = self._tables(predicted) | {"calibration": calibration}
        if self.groups is not None:
            tops = ("acc1", "acc5")
            by_group, details["groups"] = group_figures(
                {name: outcomes[name] for name in tops if name in outcomes}, dict.fromkeys(tops, self.groups)
            )
            lacking = {f"{name}_{end}": None for name in tops if name not in outcomes for end in GROUP_FIGURES}
            figures |= by_group | lacking
        return Findings(figures, outcomes, strata={"mean_per_class_recall": labels}, details=details)

    def _tables(self, predicted: Tensor) -> dict[str, Any]:
        names, labels = self.data.classnames, self.data.labels
        columns = metrics.class_table(predicted, labels, len(names))
        cells = metrics.confusions(predicted, labels)
        rows = zip(names, *(column.tolist() for column in columns), strict=True)
        return {
            "per_class": [dict(zip(("class", *columns._fields), row, strict=True)) for row in rows],
            "confusions": [
                {"class": names[label], "taken_for": names[other], "count": times}
                for label, other, times in cells[:CONFUSIONS]
            ],
            "confusions_left_out": max(0, len(cells) - CONFUSIONS),
        }


def _scale_of(encodings: Encodings) -> float | None:
    scale = getattr(encodings.encoder, "logit_scale", None)
    return None if scale is None else float(scale)
