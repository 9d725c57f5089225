"""What one encoder does on one task: figures with intervals and chance, confusions, a gallery, cosines, a map.

Shapes: N images, C classes or M captions, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from clipkit import metrics
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Evaluator, Findings
from clipkit.evaluation.intervals import bootstrap_interval
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.samples import ImageFile
from clipkit.evaluation.zero_shot import ZeroShot

PAIRS, GALLERY, NEAREST, MAPPED, GAP_SAMPLE = 50, 8, 5, 600, 1000
BINS = 50


class Confusion(NamedTuple):
    """Images of one class that were taken for another."""

    right: str
    taken_for: str
    times: int
    of: int
    """Images of the right class."""
    example: ImageFile
    """The one that was surest and wrong."""
    other: ImageFile | None
    """An image of the class that it was taken for, where there is one."""


class Row(NamedTuple):
    """A caption, the pictures nearest to it, and where its own stands."""

    caption: str
    pictures: list[tuple[ImageFile, bool, float]]
    """Nearest first: the picture, whether it is the caption's own, and the cosine."""
    rank: int
    """From 1, the best."""
    own: ImageFile


class Gap(NamedTuple):
    """Cosines of pairs, as counts in bins, and how far the two clouds of embeddings lie apart."""

    names: tuple[str, ...]
    counts: tuple[list[int], ...]
    span: tuple[float, float]
    distance: float
    images: int


class Point(NamedTuple):
    """An image on the map."""

    image: ImageFile
    label: str
    said: str
    right: bool


class Map(NamedTuple):
    """Images in the plane."""

    points: list[Point]
    xy: Tensor
    """(N, 2) in [0, 1]."""
    method: str
    of: int
    """Images in the whole set."""


class Figure(NamedTuple):
    """A headline figure, its 95 % interval, and what guessing gives."""

    name: str
    value: float
    low: float | None
    high: float | None
    chance: float | None
    n: int


@dataclass(frozen=True)
class Study:
    """All that is known of one task."""

    name: str
    task: str
    data: str
    samples: int
    figures: list[Figure]
    findings: Findings
    key: tuple[object, ...]
    """Equal where two studies asked the same of the same samples in the same order."""
    confusions: list[Confusion] = field(default_factory=list)
    errors: int = 0
    """Images whose class was not found (zero-shot)."""
    wins: list[Row] = field(default_factory=list)
    failures: list[Row] = field(default_factory=list)
    gap: Gap | None = None
    map: Map | None = None


def study(name: str, evaluator: Evaluator, encodings: Encodings, *, place: str = "") -> Study:
    """Run a task and look behind its figures.

    Args:
        name: What the run calls the task.
        evaluator: Its question and its data.
        encodings: The encoder's embeddings.
        place: Where the data lie: what tells sets apart whose samples this module does not know.

    Raises:
        ValueError: If an image cannot be read, with its name.
    """
    findings = evaluator.run(encodings)
    if isinstance(evaluator, ZeroShot):
        return _zero_shot(name, evaluator, encodings, findings)
    if isinstance(evaluator, Retrieval):
        return _retrieval(name, evaluator, encodings, findings)
    samples = int(_number(findings.figures.get("samples")) or 0)
    figures = _figures(findings, {}, samples)
    return Study(name, evaluator.task, place, samples, figures, findings, (evaluator.task, place, samples))


def _zero_shot(name: str, evaluator: ZeroShot, encodings: Encodings, findings: Findings) -> Study:
    data, labels = evaluator.data, evaluator.data.labels
    own = evaluator.prompts
    classes = encodings.classes(data.classnames, evaluator.templates) if own is None else encodings.prompts(own)
    image = encodings.images(data.images)
    best, said = nearest_classes(image, classes, labels)
    right = said == labels
    chance = {f: k / len(classes) for f, k in (("acc1", 1), ("acc5", 5), ("mean_per_class_recall", 1))}
    words = [data.classnames[label] for label in labels.tolist()]
    heard = [data.classnames[label] for label in said.tolist()]
    points = [Point(*four) for four in zip(data.images, words, heard, right.tolist(), strict=True)]
    return Study(
        name=name,
        task=evaluator.task,
        data=data.name,
        samples=len(data),
        figures=_figures(findings, chance, len(data)),
        findings=findings,
        key=(evaluator.task, data.classnames, tuple(labels.tolist()), tuple(map(_identity, data.images))),
        confusions=confusions(data.images, labels, said, best, data.classnames),
        errors=int((~right).sum()),
        gap=cosine_gap(image, classes, labels),
        map=_map(image, points),
    )


def _retrieval(name: str, evaluator: Retrieval, encodings: Encodings, findings: Findings) -> Study:
    data = evaluator.data
    image, text, owner = encodings.images(data.images), encodings.texts(data.texts), data.owner
    found = metrics.ranks(image, text, owner)
    captions = torch.bincount(owner, minlength=len(image))
    chance = {f"image_retrieval_recall@{k}": k / len(image) for k in (1, 5, 10)}
    chance |= {f"text_retrieval_recall@{k}": _any_of(captions, len(text), k) for k in (1, 5, 10)}
    hits, misses = (found.image == 0).nonzero().flatten(), (found.image > 0).nonzero().flatten()
    worst = misses[found.image[misses].argsort(descending=True, stable=True)][:GALLERY]
    rows = [
        [_row(data.images, data.texts, image, text, owner, found.image, item) for item in chosen]
        for chosen in (_spread(hits.tolist(), GALLERY), worst.tolist())
    ]
    first = [texts[0] for texts in data.captions]
    points = [
        Point(file, words, "", not miss)
        for file, words, miss in zip(data.images, first, found.text.tolist(), strict=True)
    ]
    return Study(
        name=name,
        task=evaluator.task,
        data=data.name,
        samples=len(data),
        figures=_figures(findings, chance, len(data), len(text)),
        findings=findings,
        key=(evaluator.task, tuple(data.texts), tuple(map(_identity, data.images))),
        wins=rows[0],
        failures=rows[1],
        gap=cosine_gap(image, text, None, owner),
        map=_map(image, points),
    )


def nearest_classes(image: Tensor, classes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The class that each image is taken for, and by how much it beats the right one.

    A wrong class that ties with the right one counts as what the image was taken for, as in the figures.

    Args:
        image: Unit-norm embeddings (N, D).
        classes: Unit-norm embeddings (C, D).
        labels: The right class (N,), int64.

    Returns:
        Margin of the best wrong class over the right one (N,), and the class taken (N,), int64.
    """
    margins, taken = [], []
    for start in range(0, len(image), metrics.TILE):
        rows = slice(start, start + metrics.TILE)
        scores = metrics.cosines(image[rows], classes)
        own = scores.gather(1, labels[rows, None])
        wrong = scores.scatter(1, labels[rows, None], -torch.inf).max(1)
        margin = wrong.values - own[:, 0]
        margins.append(margin)
        taken.append(torch.where(margin >= 0, wrong.indices, labels[rows]))
    return torch.cat(margins), torch.cat(taken)


def confusions(
    images: Sequence[ImageFile], labels: Tensor, said: Tensor, margin: Tensor, classnames: Sequence[str]
) -> list[Confusion]:
    """The pairs of classes that were confused most often; among equally frequent ones, the surest mistakes first."""
    wrong = (said != labels).nonzero().flatten()
    pair = labels[wrong] * len(classnames) + said[wrong]
    kinds, place, counts = pair.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    sure = torch.full((len(kinds),), -torch.inf).scatter_reduce(0, place, margin[wrong].float(), "amax")
    order = sorted(range(len(kinds)), key=lambda k: (-int(counts[k]), -float(sure[k]), int(kinds[k])))[:PAIRS]
    of = torch.bincount(labels, minlength=len(classnames))
    found = []
    for kind in order:
        right, other = divmod(int(kinds[kind]), len(classnames))
        own = wrong[place == kind]
        example = int(own[margin[own].argmax()])
        there = (labels == other).nonzero().flatten()
        good = there[said[there] == other]  # rather one that was recognised
        shown = int(good[0]) if len(good) else int(there[0]) if len(there) else None
        other_image = None if shown is None else images[shown]
        count, total = int(counts[kind]), int(of[right])
        found.append(Confusion(classnames[right], classnames[other], count, total, images[example], other_image))
    return found


def cosine_gap(image: Tensor, text: Tensor, labels: Tensor | None, owner: Tensor | None = None) -> Gap:
    """Cosines of images with their own text, with other texts and with each other, and the modality gap.

    The gap is the distance between the mean image embedding and the mean text embedding (Liang et al. 2022,
    https://arxiv.org/abs/2203.02053), over at most ``GAP_SAMPLE`` images and as many texts.

    Args:
        image: Unit-norm embeddings (N, D).
        text: Unit-norm embeddings (M, D).
        labels: The text of each image (N,), or None.
        owner: The image of each text (M,), where there are no labels.
    """
    chosen = torch.tensor(_spread(list(range(len(image))), GAP_SAMPLE))
    if labels is None:
        assert owner is not None
        first = torch.full((len(image),), len(owner)).scatter_reduce(0, owner, torch.arange(len(owner)), "amin")
        labels = first
    rows, used = image[chosen], labels[chosen]
    own = (rows * text[used]).sum(1)
    texts, where = used.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    across = rows @ text[texts].T
    wrong = torch.ones_like(across, dtype=torch.bool)
    wrong[torch.arange(len(rows)), where] = False
    if owner is not None:
        wrong &= owner[texts][None] != chosen[:, None]
    upper = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
    kinds = (own, across[wrong], (rows @ rows.T)[upper])
    filled = [kind for kind in kinds if len(kind)]
    low, high = (
        math.floor(10 * min(map(float, map(torch.min, filled)))) / 10,
        math.ceil(10 * max(map(float, map(torch.max, filled)))) / 10,
    )
    counts = tuple([int(n) for n in torch.histc(kind.float(), BINS, low, high)] for kind in kinds)
    distance = float((rows.mean(0) - text[texts].mean(0)).norm())
    names = ("an image and its own text", "an image and another's text", "two images")
    return Gap(names, counts, (low, high), distance, len(rows))


def _map(image: Tensor, points: Sequence[Point]) -> Map | None:
    from clipkit.report.plane import to_plane

    chosen = _spread(list(range(len(points))), MAPPED)
    if len(chosen) < 3:
        return None
    xy, method = to_plane(image[chosen])
    return Map([points[item] for item in chosen], xy, method, len(points))


def _row(
    images: Sequence[ImageFile],
    texts: Sequence[str],
    image: Tensor,
    text: Tensor,
    owner: Tensor,
    ranks: Tensor,
    item: int,
) -> Row:
    scores = metrics.cosines(text[item : item + 1], image)[0]
    mine = int(owner[item])
    pessimistic = scores.clone()
    pessimistic[mine] -= 1e-9 + 1e-6 * abs(float(scores[mine]))  # a tie is lost, as in the figures
    nearest = pessimistic.topk(min(NEAREST, len(image))).indices.tolist()
    pictures = [(images[i], i == mine, float(scores[i])) for i in nearest]
    return Row(texts[item], pictures, int(ranks[item]) + 1, images[mine])


def _figures(findings: Findings, chance: dict[str, float], images: int, captions: int = 0) -> list[Figure]:
    found = []
    for name, value in findings.figures.items():
        number = _number(value)
        if number is None or name in ("samples", "captions") or name.endswith(("_ci", "_chance")):
            continue
        ends = None
        if name in findings.outcomes:
            clusters, strata = findings.clusters.get(name), findings.strata.get(name)
            ends = bootstrap_interval(findings.outcomes[name], seed=0, clusters=clusters, strata=strata)
        guess = _number(findings.figures.get(f"{name}_chance"))
        count = captions if captions and name in findings.clusters else images
        low, high = ends or (None, None)
        found.append(Figure(name, number, low, high, chance.get(name) if guess is None else guess, count))
    return found


def _any_of(captions: Tensor, total: int, k: int) -> float:
    """Chance that one of an image's captions is among ``k`` drawn from all, averaged over images."""
    missed = [math.comb(total - own, k) / math.comb(total, k) if total >= k else 0.0 for own in captions.tolist()]
    return 1 - sum(missed) / len(missed)


def _spread(items: list[int], most: int) -> list[int]:
    """At most ``most`` of the items, evenly spread."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _identity(image: ImageFile) -> tuple[object, ...]:
    """What a sample is called in its set, wherever the set lies."""
    return image.path.name, image.key, image.offset, image.length


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
