"""What pixels alone reach on the embedded data: the nearest neighbour at 16 x 16 pixels, and chance.

A model that stays below these figures has learnt less than the drawings themselves give away.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clipkit.data.embedded import HELD_OUT_STYLE, TRAIN_STYLES, Concept, concepts, drawings

SIZE = 16
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def nearest_class_distances(test: Floats, train: Floats, labels: Ints, classes: int) -> Floats:
    """The distance of each test picture to the nearest training picture of each class.

    Args:
        test: Pictures as rows (N, P).
        train: Training pictures as rows (M, P).
        labels: The training pictures' classes (M,).
        classes: How many classes there are.

    Returns:
        Squared Euclidean distances (N, classes); infinite for a class without pictures.
    """
    squared = (test**2).sum(1)[:, None] + (train**2).sum(1)[None] - 2 * test @ train.T
    distances = np.full((len(test), classes), np.inf, np.float32)
    for label in np.unique(labels):
        distances[:, label] = squared[:, labels == label].min(1)
    return distances


def accuracy(distances: Floats, labels: Ints, k: int) -> float:
    """The share of rows whose class is among the ``k`` nearest, in expectation over a random order of equal distances.

    Args:
        distances: One row a picture (N, C), smaller is nearer.
        labels: The right class of each row (N,).
        k: How many classes may be named.

    Returns:
        A fraction.

    >>> accuracy(np.array([[1.0, 2.0], [3.0, 3.0]], np.float32), np.array([0, 0]), k=1)
    0.75
    """
    own = distances[np.arange(len(labels)), labels][:, None]
    before, equal = (distances < own).sum(1), (distances == own).sum(1)
    return float((np.clip(k - before, 0, equal) / equal).mean())


def chance(classes: int) -> dict[str, float]:
    """What guessing reaches: ``acc1`` and ``acc5``."""
    return {"acc1": 1 / classes, "acc5": min(1.0, 5 / classes)}


def pixel_1nn(style: str = HELD_OUT_STYLE) -> dict[str, dict[str, float]]:
    """The nearest neighbour's figures for the embedded evaluation sets, as fractions.

    The training pictures are those of the seen concepts in the training styles. An unseen concept has none, so pixels
    cannot name it: among the unseen they can only go by the subgroup of the nearest pictures, and concepts of one
    subgroup tie. ``subgroup`` has its concept left out by itself, for the same reason.

    Args:
        style: The style to evaluate: the held-out one, or fxemoji, which is then no training style.

    Returns:
        ``style_transfer`` and ``unseen`` with ``acc1`` and ``acc5``, ``subgroup`` with ``acc1``.
    """
    training = [name for name in TRAIN_STYLES if name != style]
    pictures = {name: drawings(name) for name in (*training, style)}
    known = concepts()
    seen = [(concept, name) for concept in known if not concept.held_out for name in training if name in concept.styles]
    train = _rows([pictures[name][concept.hexcode] for concept, name in seen])
    of_style = [concept for concept in known if style in concept.styles]
    trained = [concept for concept in of_style if not concept.held_out and set(training) & set(concept.styles)]
    unseen = [concept for concept in of_style if concept.held_out]

    index = {concept.hexcode: number for number, concept in enumerate(trained)}
    kept = [number for number, (concept, _) in enumerate(seen) if concept.hexcode in index]
    labels = np.array([index[seen[number][0].hexcode] for number in kept])
    by_concept = nearest_class_distances(_of(trained, pictures[style]), train[kept], labels, len(trained))

    kinds = {kind: number for number, kind in enumerate(sorted({concept.subgroup for concept, _ in seen}))}
    labels = np.array([kinds[concept.subgroup] for concept, _ in seen])
    by_kind = nearest_class_distances(_of(unseen, pictures[style]), train, labels, len(kinds))
    kind_of = np.array([kinds[concept.subgroup] for concept in unseen])
    return {
        "style_transfer": {f"acc{k}": accuracy(by_concept, np.arange(len(trained)), k) for k in (1, 5)},
        "unseen": {f"acc{k}": accuracy(by_kind[:, kind_of], np.arange(len(unseen)), k) for k in (1, 5)},
        "subgroup": {"acc1": accuracy(by_kind, kind_of, 1)},
    }


def _of(chosen: Sequence[Concept], pictures: Mapping[str, bytes]) -> Floats:
    return _rows([pictures[concept.hexcode] for concept in chosen])


def _rows(pictures: Sequence[bytes]) -> Floats:
    """Each picture as 16 x 16 means of its pixels, one row (N, 768), from 0 to 1."""
    from PIL import Image

    rows = np.empty((len(pictures), SIZE * SIZE * 3), np.float32)
    for row, picture in zip(rows, pictures, strict=True):
        small = Image.open(io.BytesIO(picture)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
        row[:] = np.asarray(small, np.float32).ravel() / 255
    return rows


def figures(style: str = HELD_OUT_STYLE) -> dict[str, dict[str, dict[str, float]]]:
    """Chance and ``pixel_1nn`` for every set: ``{set: {chance: {...}, pixel_1nn: {...}}}``."""
    pixels = pixel_1nn(style)
    known = concepts()
    of_style = [concept for concept in known if style in concept.styles]
    training = set(TRAIN_STYLES) - {style}
    classes = {
        "style_transfer": sum(not c.held_out and bool(training & set(c.styles)) for c in of_style),
        "unseen": sum(c.held_out for c in of_style),
        "subgroup": len({c.subgroup for c in known if not c.held_out and training & set(c.styles)}),
    }
    return {
        name: {"chance": {k: chance(classes[name])[k] for k in row}, "pixel_1nn": row} for name, row in pixels.items()
    }
