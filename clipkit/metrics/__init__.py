"""Figures as pure functions: tensors in, plain numbers out, ties always against the model."""

from clipkit.metrics.calibration import BINS, expected_calibration_error, fit_scale, negative_log_likelihood
from clipkit.metrics.classification import label_ranks, mean_per_class_recall, topk_accuracy
from clipkit.metrics.geometry import alignment, modality_gap, uniformity
from clipkit.metrics.groups import Grouped, by_group
from clipkit.metrics.multi_label import average_precision, eleven_point_precision
from clipkit.metrics.retrieval import Ranks, average_precision_at_r, median, positions, ranks, recall_at, true_recall
from clipkit.metrics.scores import TILE, cosines, paired_cosines, tiles
from clipkit.metrics.tables import ClassTable, averages, class_table, confusions, predictions

__all__ = [
    "BINS",
    "TILE",
    "ClassTable",
    "Grouped",
    "Ranks",
    "alignment",
    "average_precision",
    "average_precision_at_r",
    "averages",
    "by_group",
    "class_table",
    "confusions",
    "cosines",
    "eleven_point_precision",
    "expected_calibration_error",
    "fit_scale",
    "label_ranks",
    "mean_per_class_recall",
    "median",
    "modality_gap",
    "negative_log_likelihood",
    "paired_cosines",
    "positions",
    "predictions",
    "ranks",
    "recall_at",
    "tiles",
    "topk_accuracy",
    "true_recall",
    "uniformity",
]
