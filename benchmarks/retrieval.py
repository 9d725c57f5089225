"""Memory and time of exact retrieval both ways, five captions an image, against CLIP_benchmark's own functions at k = 1.

Each measurement is a process of its own that makes the same unit-norm embeddings, and reports what it grew by and how
long it took. CLIP_benchmark holds all scores and all positives; clipkit holds a tile, and gives every k, median and
mean rank, true recall and mAP@R in the same pass. ``growth`` is clipkit's peak with twice the images and captions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import figure, finish, peak_growth, quick
from torch import Tensor
from torch.nn.functional import normalize

WIDTH, CAPTIONS = 256, 5


def problem(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, D), captions (5 N, D) near their own, and whose they are (5 N,)."""
    generator = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(images, WIDTH, generator=generator), dim=1)
    owner = torch.arange(images).repeat_interleave(CAPTIONS)
    text = torch.randn(len(owner), WIDTH, generator=generator).mul_(0.25)
    return image, normalize(text.add_(image[owner]), dim=1), owner


def ours(image: Tensor, text: Tensor, owner: Tensor) -> dict[str, float]:
    """Every figure; two of them are the peer's."""
    from clipkit import metrics

    found = metrics.ranks(image, text, owner)
    metrics.true_recall(found.caption, owner, 5)
    metrics.average_precision_at_r(found.caption, owner)
    return {"image": metrics.recall_at(found.image, 1), "text": metrics.recall_at(found.text, 1)}


def theirs(image: Tensor, text: Tensor, owner: Tensor) -> dict[str, float]:
    """What ``zeroshot_retrieval.evaluate`` does once the embeddings are there, with its batch of 64."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = text @ image.t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner] = True
    by_text = batchify(recall_at_k, scores, positive, 64, "cpu", k=1)
    by_image = batchify(recall_at_k, scores.T, positive.T, 64, "cpu", k=1)
    return {"image": (by_text > 0).float().mean().item(), "text": (by_image > 0).float().mean().item()}


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], dict[str, float]]] = {"ours": ours, "theirs": theirs}


def child(way: str, images: int) -> None:
    """Measure one way in this process and print what was found."""
    small = problem(50)
    WAYS[way](*small)  # imports and thread pools are not part of it
    given, found = problem(images), {}
    start = time.perf_counter()
    grown = peak_growth(lambda: found.update(WAYS[way](*given)))
    print(json.dumps(found | {"seconds": time.perf_counter() - start, "megabytes": grown}))


def measure(way: str, images: int) -> dict[str, float]:
    """One way in a process of its own."""
    here = Path(__file__).resolve()
    done = subprocess.run(
        [sys.executable, str(here), "--child", way, str(images)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{way}: {images} images: {found}", file=sys.stderr)
    return found


def main() -> int:
    """Measure in turn, print and judge."""
    short = quick(__doc__ or "")
    images, times = (4000, 3) if short else (20_000, 3)
    memory, seconds, growth = [], [], []
    for _ in range(times):
        mine, peer, twice = measure("ours", images), measure("theirs", images), measure("ours", 2 * images)
        assert abs(mine["image"] - peer["image"]) < 1e-6, (mine, peer)
        assert abs(mine["text"] - peer["text"]) < 1e-6, (mine, peer)
        memory.append(peer["megabytes"] / mine["megabytes"])
        seconds.append(peer["seconds"] / mine["seconds"])
        growth.append(twice["megabytes"] / mine["megabytes"])
    figures = {"memory_ratio": figure(memory), "time_ratio": figure(seconds), "growth": figure(growth)}
    return finish("retrieval", peer="CLIP_benchmark 1.6.2", figures=figures, short=short)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main())
