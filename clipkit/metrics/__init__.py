"""Figures as pure functions: tensors in, plain numbers out, ties always against the model."""

from clipkit.metrics.classification import label_ranks, mean_per_class_recall, topk_accuracy
from clipkit.metrics.retrieval import Ranks, average_precision_at_r, median, positions, ranks, recall_at, true_recall
from clipkit.metrics.scores import TILE, cosines, paired_cosines, tiles

__all__ = [
    "TILE",
    "Ranks",
    "average_precision_at_r",
    "cosines",
    "label_ranks",
    "mean_per_class_recall",
    "median",
    "paired_cosines",
    "positions",
    "ranks",
    "recall_at",
    "tiles",
    "topk_accuracy",
    "true_recall",
]
