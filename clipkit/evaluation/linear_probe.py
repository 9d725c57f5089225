"""The linear probe: how well a linear classifier on frozen image features does (CLIP, section 3.2 and A.3).

The classifier is the optimum of multinomial logistic regression (``logistic.py``), its weight decay is chosen on rows held
out of the training part (``weight_decay.py``) and it is fitted again on all of them. The scored part decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipkit import metrics
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Figures, Findings
from clipkit.evaluation.feature_kinds import KINDS, check_kinds, compute_device, suffix
from clipkit.evaluation.logistic import Fit, Problem
from clipkit.evaluation.probe_splits import few_shot, folds_of, hold_out
from clipkit.evaluation.train_test import open_train_test
from clipkit.evaluation.weight_decay import Fold, Tried, choose

_log = logging.getLogger(__name__)


class LinearProbe:
    """Accuracy of linear classifiers on image features, with all training images and with a few of each class.

    Args:
        data: A set with a part to learn from (``open_train_test``).
        train: That part, where it lies elsewhere.
        classnames: Names of the classes, or the name of a set of them, instead of the set's.
        features: ``embedding``, ``pooled`` (before the projection), or both.
        normalise: Whether features are brought to unit norm, as CLIP_benchmark does.
        shots: Few-shot probes besides: training images of each class, each number on its own.
        validation: Share of each class's training images by which the weight decay is chosen. Few-shot probes choose by
            cross-validation within their few images, and see no other.
        seed: Of the draws.

    Raises:
        ValueError: If the set or an argument cannot be used as it is, with place and cure.
    """

    task = "linear_probe"  # CLIP_benchmark's name

    def __init__(
        self,
        data: str | Path,
        *,
        train: str | Path | None = None,
        classnames: str | Sequence[str] | None = None,
        features: Sequence[str] = KINDS,
        normalise: bool = True,
        shots: Sequence[int] = (),
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.features = check_kinds(features)
        if not 0 < validation < 1:
            raise ValueError(f"validation: {validation}; it is a share of the training images, above 0 and below 1")
        if shots and min(shots) < 1:
            raise ValueError(f"shots: {list(shots)}; each is a number of images a class, at least 1")
        parts = open_train_test(data, train, classnames=classnames)
        self.data, self.train = parts.test, parts.train
        self.normalise, self.validation, self.seed = normalise, validation, seed
        train_labels, names = self.train.labels, self.train.classnames
        self._rows: dict[int | None, Tensor] = {None: torch.arange(len(train_labels))}
        self._rows |= {count: few_shot(train_labels, count, seed, names) for count in sorted(set(shots))}
        absent = sorted(set(range(len(names))) - set(train_labels.tolist()))
        if absent:
            text = "%s: %d classes have no training image (%r): every image of theirs counts as wrong"
            _log.warning(text, data, len(absent), names[absent[0]])

    def run(self, encodings: Encodings) -> Findings:
        """Fit and score; each rank does the same arithmetic on the gathered features.

        Args:
            encodings: The encoder's embeddings, the same on every rank.

        Returns:
            ``lp_acc1``, ``lp_acc5`` (None with fewer than 5 classes) and ``lp_mean_per_class_recall``; the same with
            ``_pooled`` for features before the projection and with ``_Kshot``; ``samples`` and ``train_samples``. The
            details hold each probe's weight decay and the search for it.

        Raises:
            ValueError: If an image cannot be read, or features are not finite.
        """
        train, test = self.train, self.data
        learned = encodings.features(train.images, self.features)
        scored = encodings.features(test.images, self.features)
        figures: Figures = {}
        outcomes: dict[str, Tensor] = {}
        strata: dict[str, Tensor] = {}
        details: dict[str, Any] = {"normalised": self.normalise, "seed": self.seed}
        device = compute_device(encodings.encoder.device)
        for kind in self.features:
            x, y = self._prepared(learned[kind], device), train.labels.to(device)
            target = self._prepared(scored[kind], device)
            for shots, rows in self._rows.items():
                end = suffix(kind) + ("" if shots is None else f"_{shots}shot")
                logits, how = self._probe(x[rows], y[rows], target, few=shots is not None)
                ranks = metrics.label_ranks(logits.cpu(), test.labels)
                right = ranks < 1
                figures[f"lp_acc1{end}"] = metrics.recall_at(ranks, 1)
                figures[f"lp_acc5{end}"] = metrics.recall_at(ranks, 5) if logits.shape[1] >= 5 else None
                figures[f"lp_mean_per_class_recall{end}"] = metrics.mean_per_class_recall(right, test.labels)
                outcomes |= {
                    f"lp_acc1{end}": right,
                    f"lp_acc5{end}": ranks < 5,
                    f"lp_mean_per_class_recall{end}": right,
                }
                strata[f"lp_mean_per_class_recall{end}"] = test.labels
                details[f"lp{end}"] = how
                if not how["converged"]:
                    _log.warning("linear probe on %s: not at its optimum after %d steps", train.name, how["steps"])
        kept = {name: hits for name, hits in outcomes.items() if figures[name] is not None}
        counts: Figures = {"samples": len(test), "train_samples": len(train)}
        return Findings(figures | counts, kept, strata=strata, details=details)

    def _prepared(self, features: Tensor, device: torch.device) -> Tensor:
        wide = features.to(device).double()
        return normalize(wide, dim=1) if self.normalise else wide

    def _probe(self, x: Tensor, y: Tensor, target: Tensor, *, few: bool) -> tuple[Tensor, dict[str, Any]]:
        """Scores of all classes (M, C) for ``target`` (M, D), and how they came about."""
        folds = folds_of(y.cpu(), self.seed) if few else [hold_out(y.cpu(), self.validation, self.seed)]
        fit, tried = fit_probe(x, y, [fold for fold in folds if len(fold[1])])
        logits = target.new_full((len(target), len(self.data.classnames)), torch.finfo(target.dtype).min)
        logits[:, torch.unique(y)] = fit.logits(target)
        how = {
            "weight_decay": fit.weight_decay,
            "steps": fit.steps,
            "converged": fit.converged,
            "train_samples": len(x),
        }
        return logits, how | {"tried": [asdict(one) for one in tried]}


def fit_probe(x: Tensor, y: Tensor, folds: Sequence[Fold]) -> tuple[Fit, list[Tried]]:
    """Choose a weight decay and fit with it on all rows.

    Args:
        x: Features (N, D).
        y: Their labels (N,), int64.
        folds: Rows to fit on and to look at, for the choice; none takes scikit-learn's default.

    Returns:
        The classifier, its classes those of ``y`` in ascending order, and all weight decays that were tried.
    """
    present, labels = torch.unique(y, return_inverse=True)
    weight_decay, tried, start = choose(x, labels, len(present), folds)
    return Problem(x, labels, len(present)).fit(weight_decay, start=start), tried
