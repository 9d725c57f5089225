"""Retrieval in both directions, with any number of captions an image (CLIP, table 13)."""

from __future__ import annotations

from pathlib import Path

import torch

from clipkit import metrics
from clipkit.encoder import Encoder
from clipkit.evaluation.datasets import open_retrieval
from clipkit.evaluation.evaluator import Figures
from clipkit.evaluation.split import encode_images, gather_by_index, my_share

K = (1, 5, 10)


class Retrieval:
    """How often the right image is found by a caption, and a right caption by an image.

    The set is opened at once, so mistakes show at start.

    Args:
        data: CLIP_benchmark's shards, images with captions beside them, or a CSV.
        batch_size: Images of one forward on one rank.
        workers: Processes a rank that read and decode images.

    Raises:
        ValueError: If the set cannot be used as it is, with place and cure.
    """

    task = "zeroshot_retrieval"  # CLIP_benchmark's name

    def __init__(self, data: str | Path, *, batch_size: int = 64, workers: int = 0) -> None:
        self.data = open_retrieval(data)
        self.batch_size = batch_size
        self.workers = workers

    def run(self, encoder: Encoder) -> Figures:
        """Rank all images for each caption, and all captions for each image.

        Args:
            encoder: The encoder, the same on every rank.

        Returns:
            ``image_retrieval_recall@k`` (share of captions whose image is among the k best) and
            ``text_retrieval_recall@k`` (share of images with one of their captions among the k best) for k of 1, 5 and
            10, None with fewer than k candidates; ``samples`` (images) and ``captions``.

        Raises:
            ValueError: If an image cannot be read, with its name.
        """
        texts = self.data.texts
        image = encode_images(encoder, self.data.images, batch_size=self.batch_size, workers=self.workers)
        mine = my_share(len(texts))
        text = encoder.encode_text([texts[item] for item in mine])
        text = gather_by_index(text, mine, len(texts), encoder.device)
        with torch.no_grad():
            ranks = metrics.ranks(image, text, self.data.owner)
        figures: Figures = {}
        for k in K:
            figures[f"image_retrieval_recall@{k}"] = metrics.recall_at(ranks.image, k) if len(image) >= k else None
        for k in K:
            figures[f"text_retrieval_recall@{k}"] = metrics.recall_at(ranks.text, k) if len(text) >= k else None
        return figures | {"samples": len(image), "captions": len(text)}
