"""k nearest neighbours on image features: no training at all (DINO, https://arxiv.org/abs/2104.14294, appendix F.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipkit import metrics
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Figures, Findings
from clipkit.evaluation.feature_kinds import KINDS, check_kinds, compute_device, suffix
from clipkit.evaluation.split import gather_by_index, my_share
from clipkit.evaluation.train_test import open_train_test

TEMPERATURE = 0.07  # DINO's
_SCORES_AT_ONCE = 1 << 24  # test rows x training rows whose cosines are held


class NearestNeighbours:
    """Accuracy of a vote among the nearest training images by cosine, weighted and plain.

    Args:
        data: A set with a part to learn from (``open_train_test``).
        train: That part, where it lies elsewhere.
        classnames: Names of the classes, or the name of a set of them, instead of the set's.
        features: ``embedding``, ``pooled`` (before the projection), or both; at unit norm either way.
        k: How many neighbours vote, each number on its own.
        temperature: Of the weighted vote: a neighbour counts exp(cosine / temperature).

    Raises:
        ValueError: If the set or an argument cannot be used as it is, with place and cure.
    """

    task = "knn"

    def __init__(
        self,
        data: str | Path,
        *,
        train: str | Path | None = None,
        classnames: str | Sequence[str] | None = None,
        features: Sequence[str] = KINDS,
        k: Sequence[int] = (1, 10, 20, 100, 200),
        temperature: float = TEMPERATURE,
    ) -> None:
        parts = open_train_test(data, train, classnames=classnames)
        self.data, self.train = parts.test, parts.train
        self.features = check_kinds(features)
        if not k or min(k) < 1:
            raise ValueError(f"k: {list(k)}; give one or more numbers of neighbours, each at least 1")
        if not temperature > 0:
            raise ValueError(f"temperature: {temperature}; it must be above 0, DINO's is {TEMPERATURE}")
        self.k = tuple(sorted(set(k)))
        self.temperature = temperature

    def run(self, encodings: Encodings) -> Findings:
        """Let the neighbours of every image vote; images are shared among the ranks.

        Args:
            encodings: The encoder's embeddings, the same on every rank.

        Returns:
            ``knn_acc1@K`` (weighted) and ``knn_majority_acc1@K`` for each k, None where there are fewer training images;
            the same with ``_pooled`` for features before the projection; ``samples`` and ``train_samples``. An equal
            number of votes for another class counts as wrong; equally near images at the edge enter in the set's order.

        Raises:
            ValueError: If an image cannot be read, or features are not finite.
        """
        train, test = self.train, self.data
        learned = encodings.features(train.images, self.features)
        scored = encodings.features(test.images, self.features)
        figures: Figures = {}
        outcomes: dict[str, Tensor] = {}
        device = compute_device(encodings.encoder.device)
        for kind in self.features:
            mine = my_share(len(test))
            ranks = vote_ranks(
                normalize(learned[kind], dim=1).to(device),
                train.labels.to(device),
                normalize(scored[kind][mine], dim=1).to(device),
                test.labels[mine].to(device),
                classes=len(test.classnames),
                k=[k for k in self.k if k <= len(train)],
                temperature=self.temperature,
            )
            for name, of_mine in ranks.items():
                found = gather_by_index(of_mine.cpu()[:, None], mine, len(test), device)[:, 0]
                outcomes[f"{name}{suffix(kind)}"] = found < 1
            for vote in ("knn_acc1", "knn_majority_acc1"):
                for k in self.k:
                    name = f"{vote}@{k}{suffix(kind)}"
                    figures[name] = float(outcomes[name].double().mean()) if name in outcomes else None
        counts: Figures = {"samples": len(test), "train_samples": len(train)}
        details = {"temperature": self.temperature, "normalised": True}
        return Findings(figures | counts, outcomes, details=details)


def vote_ranks(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    k: Sequence[int],
    temperature: float = TEMPERATURE,
) -> dict[str, Tensor]:
    """Rank of the right class by the votes of the nearest rows.

    Args:
        train: Unit-norm rows (N, D).
        train_labels: (N,), int64.
        test: Unit-norm rows (M, D).
        test_labels: (M,), int64.
        classes: C.
        k: Numbers of neighbours, each at most N.
        temperature: Of the weighted vote.

    Returns:
        ``knn_acc1@K`` and ``knn_majority_acc1@K`` to ranks from 0, the best (M,), int64; ties count against the row.

    Raises:
        ValueError: If a row is not finite.
    """
    for name, rows in (("training", train), ("test", test)):
        bad = (~rows.isfinite()).any(1).nonzero()
        if len(bad):
            message = (
                f"{name} features must be finite: row {int(bad[0])} and {len(bad) - 1} others hold NaN or infinity"
            )
            raise ValueError(message)
    found: dict[str, list[Tensor]] = {f"{vote}@{n}": [] for vote in ("knn_acc1", "knn_majority_acc1") for n in k}
    at_once = max(1, _SCORES_AT_ONCE // max(1, len(train)))
    for start in range(0, max(1, len(test)), at_once):
        rows, labels = test[start : start + at_once], test_labels[start : start + at_once]
        cosines, nearest = _nearest(metrics.cosines(rows, train), max(k, default=0))
        theirs = train_labels[nearest]
        weights = (cosines.double() / temperature - 1 / temperature).exp()  # at most 1: the ratio is the same
        for n in k:
            for vote, of_each in (("knn_acc1", weights), ("knn_majority_acc1", torch.ones_like(weights))):
                votes = weights.new_zeros(len(rows), classes)
                votes.scatter_add_(1, theirs[:, :n], of_each[:, :n])
                found[f"{vote}@{n}"].append(metrics.label_ranks(votes, labels))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _nearest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` highest of each row, highest first, equal ones by column: values and columns (M, k)."""
    if k == 0:
        return scores[:, :0], scores[:, :0].long()
    edge = scores.topk(k, dim=1).values[:, -1:]
    above, at = scores > edge, scores == edge
    inside = above | (at & (at.cumsum(1) <= k - above.sum(1, keepdim=True)))
    columns = inside.nonzero()[:, 1].reshape(len(scores), k)
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)
