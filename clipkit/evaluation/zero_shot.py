"""Zero-shot classification with an ensemble of prompts (CLIP, section 3.1.4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from clipkit import metrics
from clipkit.evaluation.datasets import open_classification
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Figures, Findings
from clipkit.evaluation.prompts import DEFAULT_TEMPLATES

_log = logging.getLogger(__name__)


class ZeroShot:
    """Top-1, top-5 and mean per-class accuracy without training. The set is opened at once, so mistakes show at start.

    Args:
        data: CLIP_benchmark's shards or class folders.
        templates: Prompts with ``{c}``, or the name of a set of them (``openai80``), instead of the set's;
            ``prompts.DEFAULT_TEMPLATES`` where the set has none.
        classnames: Names of the classes, or the name of a set of them (``imagenet1k``), instead of the set's.

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
    ) -> None:
        self.data = open_classification(data, classnames=classnames, templates=templates)
        self.templates = self.data.templates or DEFAULT_TEMPLATES
        if self.data.templates is None:
            _log.warning("%s brings no templates: %s are used", data, " and ".join(map(repr, DEFAULT_TEMPLATES)))

    def run(self, encodings: Encodings) -> Findings:
        """Classify every image.

        Args:
            encodings: The encoder's embeddings, the same on every rank.

        Returns:
            ``acc1``, ``acc5`` (None with fewer than 5 classes), ``mean_per_class_recall`` and ``samples``.

        Raises:
            ValueError: If an image cannot be read, with its name.
        """
        classes = encodings.classes(self.data.classnames, self.templates)
        image = encodings.images(self.data.images)
        labels = self.data.labels
        tiles = [slice(start, start + metrics.TILE) for start in range(0, len(image), metrics.TILE)]
        ranks = torch.cat([metrics.label_ranks(metrics.cosines(image[rows], classes), labels[rows]) for rows in tiles])
        figures: Figures = {
            "acc1": metrics.recall_at(ranks, 1),
            "acc5": metrics.recall_at(ranks, 5) if len(classes) >= 5 else None,
            "mean_per_class_recall": metrics.mean_per_class_recall(ranks == 0, labels),
            "samples": len(image),
        }
        hits = {"acc1": ranks < 1, "acc5": ranks < 5, "mean_per_class_recall": ranks < 1}
        outcomes = {name: hit for name, hit in hits.items() if figures[name] is not None}
        return Findings(figures, outcomes, strata={"mean_per_class_recall": labels})
