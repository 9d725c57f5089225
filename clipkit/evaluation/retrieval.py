"""Retrieval in both directions, with any number of captions an image (CLIP, table 13)."""

from __future__ import annotations

from pathlib import Path

from clipkit import metrics
from clipkit.evaluation.datasets import open_retrieval
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Figures, Findings

K = (1, 5, 10)


class Retrieval:
    """How often the right image is found by a caption, and a right caption by an image.

    The set is opened at once, so mistakes show at start.

    Args:
        data: CLIP_benchmark's shards, images with captions beside them, a CSV, COCO's or Karpathy's JSON.
        images: The folder of a JSON's images; None looks near it.
        split: Which split of Karpathy's JSON is read.

    Raises:
        ValueError: If the set cannot be used as it is, with place and cure.
    """

    task = "zeroshot_retrieval"  # CLIP_benchmark's name

    def __init__(self, data: str | Path, *, images: str | Path | None = None, split: str = "test") -> None:
        self.data = open_retrieval(data, images=images, split=split)

    def run(self, encodings: Encodings) -> Findings:
        """Rank all images for each caption, and all captions for each image.

        Args:
            encodings: The encoder's embeddings, the same on every rank.

        Returns:
            ``image_retrieval_recall@k`` (share of captions whose image is among the k best) and
            ``text_retrieval_recall@k`` (share of images with one of their captions among the k best) for k of 1, 5 and
            10, None with fewer than k candidates; ``samples`` (images) and ``captions``.

        Raises:
            ValueError: If an image cannot be read, with its name.
        """
        image = encodings.images(self.data.images)
        text = encodings.texts(self.data.texts)
        ranks = metrics.ranks(image, text, self.data.owner)
        figures: Figures = {}
        outcomes = {}
        for way, found, candidates in (("image", ranks.image, len(image)), ("text", ranks.text, len(text))):
            for k in K:
                name = f"{way}_retrieval_recall@{k}"
                figures[name] = metrics.recall_at(found, k) if candidates >= k else None
                if candidates >= k:
                    outcomes[name] = found < k
        clusters = {
            name: self.data.owner for name in outcomes if name.startswith("image")
        }  # an image's captions together
        return Findings(figures | {"samples": len(image), "captions": len(text)}, outcomes, clusters)
