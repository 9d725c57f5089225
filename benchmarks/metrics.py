"""Figures of retrieval against a slow loop, and against CLIP_benchmark's own functions.

``differences`` counts the ranks that differ from a loop over pairs, in 200 random problems with several captions an
image, exact ties, duplicates and negative scores. ``clip_benchmark_error`` is the largest difference from its figures
on problems without ties, where its definition leaves no choice.
"""

from __future__ import annotations

import random
import sys

import torch
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
from common import figure, finish, quick
from torch import Tensor
from torch.nn.functional import normalize

from clipkit import metrics

PROBLEMS = 200


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Whole numbers as embeddings, so that scores are exact: half of the rows are copies of others."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    images, width = draw.randint(1, 16), draw.randint(1, 12)
    owner = list(range(images)) + [draw.randrange(images) for _ in range(draw.randint(0, 40))]
    draw.shuffle(owner)
    image = torch.randint(-2, 3, (images, width)).float()
    text = torch.randint(-2, 3, (len(owner), width)).float()
    for rows in (image, text):
        copies = torch.rand(len(rows)) < 0.5
        rows[copies] = rows[torch.randint(0, len(rows), (int(copies.sum()),))]
    return image, text, torch.tensor(owner), draw.choice([1, 3, 7, 1024])


def slow(image: Tensor, text: Tensor, owner: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Ranks by a loop over pairs of plain numbers."""
    rows, columns = image.tolist(), text.tolist()
    score = [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in rows]
    by_caption = [
        sum(score[i][t] >= score[own][t] for i in range(len(rows)) if i != own) for t, own in enumerate(owner)
    ]
    own_rank = [
        sum(score[own][u] >= score[own][t] for u, other in enumerate(owner) if other != own)
        for t, own in enumerate(owner)
    ]
    best = [min(own_rank[t] for t, own in enumerate(owner) if own == i) for i in range(len(rows))]
    return by_caption, best, own_rank


def slow_queries(own_rank: list[int], owner: list[int]) -> tuple[list[float], list[float]]:
    """True recall at 5 and AP@R of each image, by walking down its list."""
    recalls, precisions = [], []
    for i in range(max(owner) + 1):
        wrong_before = sorted(own_rank[t] for t, own in enumerate(owner) if own == i)
        places = [wrong + nth for nth, wrong in enumerate(wrong_before)]
        r = len(places)
        recalls.append(sum(place < 5 for place in places) / r)
        walk = [sum(place <= at for place in places) / (at + 1) for at in range(r) if at in places]
        precisions.append(sum(walk) / r)
    return recalls, precisions


def differences(seed: int) -> int:
    """How many numbers differ in one problem."""
    image, text, owner, tile = problem(seed)
    found = metrics.ranks(image, text, owner, tile=tile)
    expected = slow(image, text, owner.tolist())
    wrong = sum(
        a != b for ours, loop in zip(found, expected, strict=True) for a, b in zip(ours.tolist(), loop, strict=True)
    )
    recalls, precisions = slow_queries(expected[2], owner.tolist())
    for ours, loop in (
        (metrics.true_recall(found.caption, owner, 5), recalls),
        (metrics.average_precision_at_r(found.caption, owner), precisions),
    ):
        wrong += sum(abs(a - b) > 1e-12 for a, b in zip(ours.tolist(), loop, strict=True))
    return wrong


def error(seed: int) -> float:
    """Largest difference from CLIP_benchmark on random unit vectors, which do not tie."""
    torch.manual_seed(seed)
    images = 40 + seed
    owner = torch.cat([torch.arange(images), torch.randint(0, images, (3 * images,))])
    image = normalize(torch.randn(images, 24), dim=1)
    text = normalize(image[owner] + 0.8 * torch.randn(len(owner), 24), dim=1)
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(owner)), owner] = True
    found, worst = metrics.ranks(image, text, owner), 0.0
    for k in (1, 5, 10):
        by_text, by_image = recall_at_k(scores, positive, k).double(), recall_at_k(scores.T, positive.T, k).double()
        pairs = (
            (metrics.recall_at(found.image, k), (by_text > 0).double().mean()),
            (metrics.recall_at(found.text, k), (by_image > 0).double().mean()),
            (float(metrics.true_recall(found.caption, owner, k).mean()), by_image.mean()),
        )
        worst = max(worst, *(abs(ours - float(theirs)) for ours, theirs in pairs))
    return worst


def main() -> int:
    """Count, compare and judge."""
    quick(__doc__ or "")  # the short form is the whole: it takes seconds
    wrong = [differences(seed) for seed in range(PROBLEMS)]
    errors = [error(seed) for seed in range(20)]
    figures = {"differences": figure(wrong, sum(wrong)), "clip_benchmark_error": figure(errors, max(errors))}
    return finish("metrics", peer="a slow loop; CLIP_benchmark 1.6.2", figures=figures)


if __name__ == "__main__":
    sys.exit(main())
