"""Retrieval in both directions, with any number of captions an image (CLIP, table 13)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit import metrics
from clipkit.config.evaluate import GROUP_FIGURES
from clipkit.evaluation.datasets import open_retrieval
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Figures, Findings
from clipkit.evaluation.groups import group_figures, sample_groups

K = (1, 5, 10)
UNIFORMITY_ROWS = 10_000
"""Embeddings whose pairs are compared for uniformity, evenly spaced over the set: pairs grow with the square."""


class Retrieval:
    """How often the right image is found by a caption, and a right caption by an image.

    The set is opened at once, so mistakes show at start.

    Args:
        data: CLIP_benchmark's shards, images with captions beside them, a CSV, COCO's or Karpathy's JSON.
        images: The folder of a JSON's images; None looks near it.
        split: Which split of Karpathy's JSON is read.
        groups: A metadata key of the images (``groups.sample_groups``): recall by its values besides.

    Raises:
        ValueError: If the set cannot be used as it is, with place and cure.
    """

    task = "zeroshot_retrieval"  # CLIP_benchmark's name

    def __init__(
        self, data: str | Path, *, images: str | Path | None = None, split: str = "test", groups: str | None = None
    ) -> None:
        self.data = open_retrieval(data, images=images, split=split)
        self.groups = None if groups is None else sample_groups(data, self.data.images, groups)

    def run(self, encodings: Encodings) -> Findings:
        """Rank all images for each caption, and all captions for each image; a tie counts against the model.

        Args:
            encodings: The encoder's embeddings, the same on every rank.

        Returns:
            Per way, ``image`` (captions look for their image) and ``text`` (images look for their captions):
            ``image_retrieval_recall@k``, CLIP's hit rate, for k of 1, 5 and 10, None with fewer than k candidates;
            ``..._true_recall@k``, the share of right answers found, averaged over queries; ``..._median_rank`` and
            ``..._mean_rank`` of the best right answer, where 1 is best; ``..._map_at_r``. Then ``mean_recall@1``, the
            mean of both ways; ``modality_gap``, ``alignment``, ``image_uniformity`` and ``text_uniformity`` (over at most
            ``UNIFORMITY_ROWS``); ``samples`` (images) and ``captions``. With groups, of each recall, ``..._worst_group`` and
            ``..._group_gap``. Details: ``uniformity_rows``, ``groups``.

        Raises:
            ValueError: If an image cannot be read, with its name.
        """
        image = encodings.images(self.data.images)
        text = encodings.texts(self.data.texts)
        owner = self.data.owner
        found = metrics.ranks(image, text, owner)
        alone = torch.arange(len(text))  # a caption has one image
        units = _units("image", found.image, found.image, alone, len(image))
        units |= _units("text", found.text, found.caption, owner, len(text))
        figures: Figures = {name: float(values.double().mean()) for name, values in units.items()}
        for way, candidates, ranks in (("image", len(image), found.image), ("text", len(text), found.text)):
            missing = [f"{way}_retrieval_{kind}@{k}" for kind in ("recall", "true_recall") for k in K if candidates < k]
            figures |= dict.fromkeys(missing)
            figures[f"{way}_retrieval_median_rank"] = metrics.median(ranks) + 1
        means = [figures["image_retrieval_recall@1"], figures["text_retrieval_recall@1"]]
        assert isinstance(means[0], float)
        assert isinstance(means[1], float)
        figures["mean_recall@1"] = (means[0] + means[1]) / 2
        clusters = {name: owner for name in units if name.startswith("image")}  # an image's captions together
        details: dict[str, Any] = {}
        if self.groups is not None:
            by_group, details["groups"] = self._by_group(units)
            figures |= by_group
        geometry, details["uniformity_rows"] = _geometry(image, text, owner)
        figures |= geometry | {"samples": len(image), "captions": len(text)}
        return Findings(figures, units, clusters, details=details)

    def _by_group(self, units: dict[str, Tensor]) -> tuple[Figures, dict[str, Any]]:
        """The recalls by group: an image's own, and for its captions their image's."""
        assert self.groups is not None
        of = {"text": self.groups, "image": [self.groups[image] for image in self.data.owner.tolist()]}
        recalls = {f"{way}_retrieval_recall@{k}": of[way] for way in of for k in K}
        held = {name: units[name] for name in recalls if name in units}
        figures, tables = group_figures(held, recalls)
        return figures | {
            f"{name}_{end}": None for name in recalls if name not in held for end in GROUP_FIGURES
        }, tables


def _geometry(image: Tensor, text: Tensor, owner: Tensor) -> tuple[Figures, dict[str, int]]:
    """Where the embeddings lie, and of how many rows uniformity is.

    To five places: another number of ranks means other batches, and with them other last bits of float32 embeddings.
    """
    some = {"image": _spread(image), "text": _spread(text)}
    found = {
        "modality_gap": metrics.modality_gap(image, text),
        "alignment": metrics.alignment(image, text, owner),
        **{f"{way}_uniformity": metrics.uniformity(rows) for way, rows in some.items()},
    }
    figures: Figures = {name: None if value is None else round(value, 5) for name, value in found.items()}
    return figures, {way: len(rows) for way, rows in some.items()}


def _spread(rows: Tensor) -> Tensor:
    """At most ``UNIFORMITY_ROWS`` of the rows, evenly spaced."""
    count = min(len(rows), UNIFORMITY_ROWS)
    return rows[torch.arange(count) * len(rows) // max(count, 1)]


def _units(way: str, best: Tensor, answers: Tensor, owner: Tensor, candidates: int) -> dict[str, Tensor]:
    """What each query of one way contributes to each figure that is a mean over queries.

    Args:
        way: ``image`` or ``text``.
        best: Rank of each query's best right answer (Q,).
        answers: Rank of each right answer among the wrong ones (A,).
        owner: The query of each right answer (A,).
        candidates: How many are searched.
    """
    units = {f"{way}_retrieval_recall@{k}": best < k for k in K if candidates >= k}
    for k in K:
        if candidates >= k:
            units[f"{way}_retrieval_true_recall@{k}"] = metrics.true_recall(answers, owner, k)
    units[f"{way}_retrieval_mean_rank"] = best + 1
    units[f"{way}_retrieval_map_at_r"] = metrics.average_precision_at_r(answers, owner)
    return units
