"""Zero-shot classification with an ensemble of prompts (CLIP, section 3.1.4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipkit import metrics
from clipkit.encoder import Encoder
from clipkit.evaluation.datasets import open_classification
from clipkit.evaluation.evaluator import Figures
from clipkit.evaluation.prompts import DEFAULT_TEMPLATES, fill
from clipkit.evaluation.split import encode_images, gather_by_index, my_share

_log = logging.getLogger(__name__)
_TEXTS_AT_ONCE = 8192  # prompts whose embeddings are held before they are averaged


class ZeroShot:
    """Top-1, top-5 and mean per-class accuracy without training. The set is opened at once, so mistakes show at start.

    Args:
        data: CLIP_benchmark's shards or class folders.
        templates: Prompts with ``{c}``, instead of the set's; ``prompts.DEFAULT_TEMPLATES`` where the set has none.
        classnames: Names of the classes, instead of the set's.
        batch_size: Images of one forward on one rank.
        workers: Processes a rank that read and decode images.

    Raises:
        ValueError: If the set cannot be used as it is, with place and cure.
    """

    task = "zeroshot_classification"  # CLIP_benchmark's name

    def __init__(
        self,
        data: str | Path,
        *,
        templates: Sequence[str] | None = None,
        classnames: Sequence[str] | None = None,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        self.data = open_classification(data, classnames=classnames, templates=templates)
        self.templates = self.data.templates or DEFAULT_TEMPLATES
        self.batch_size = batch_size
        self.workers = workers
        if self.data.templates is None:
            _log.warning("%s brings no templates: %s are used", data, " and ".join(map(repr, DEFAULT_TEMPLATES)))

    def run(self, encoder: Encoder) -> Figures:
        """Classify every image.

        Args:
            encoder: The encoder, the same on every rank.

        Returns:
            ``acc1``, ``acc5`` (None with fewer than 5 classes), ``mean_per_class_recall`` and ``samples``.

        Raises:
            ValueError: If an image cannot be read, with its name.
        """
        classes = class_embeddings(encoder, self.data.classnames, self.templates)
        image = encode_images(encoder, self.data.images, batch_size=self.batch_size, workers=self.workers)
        labels = self.data.labels
        tiles = [slice(start, start + metrics.TILE) for start in range(0, len(image), metrics.TILE)]
        ranks = torch.cat([metrics.label_ranks(metrics.cosines(image[rows], classes), labels[rows]) for rows in tiles])
        return {
            "acc1": metrics.recall_at(ranks, 1),
            "acc5": metrics.recall_at(ranks, 5) if len(classes) >= 5 else None,
            "mean_per_class_recall": metrics.mean_per_class_recall(ranks == 0, labels),
            "samples": len(image),
        }


def class_embeddings(encoder: Encoder, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One embedding a class: the mean over prompts of unit-norm text embeddings, at unit norm again.

    Args:
        encoder: The encoder, the same on every rank.
        classnames: Names of the classes (C).
        templates: Prompts with ``{c}`` (T).

    Returns:
        (C, D) float32, unit norm, on the CPU, the same on every rank.
    """
    mine = my_share(len(classnames))
    at_once = max(1, _TEXTS_AT_ONCE // len(templates))
    parts = [encoder.encode_text([])]
    for start in range(0, len(mine), at_once):
        names = [classnames[label] for label in mine[start : start + at_once]]
        text = encoder.encode_text([fill(template, name) for name in names for template in templates])
        parts.append(normalize(text.reshape(len(names), len(templates), -1).mean(1), dim=-1))
    return gather_by_index(torch.cat(parts), mine, len(classnames), encoder.device)
