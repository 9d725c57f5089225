"""Sets that bring images to learn from beside those that are scored: what probes and nearest neighbours take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipkit.evaluation.datasets import open_classification
from clipkit.evaluation.samples import ClassificationSet

_TEST = ("test", "val")


@dataclass(frozen=True)
class TrainTest:
    """Two sets of the same classes.

    Args:
        train: Learned from.
        test: Scored.
    """

    train: ClassificationSet
    test: ClassificationSet


def open_train_test(
    data: str | Path, train: str | Path | None = None, *, classnames: str | Sequence[str] | None = None
) -> TrainTest:
    """Open both parts of a set.

    Args:
        data: CLIP_benchmark's shards with ``train/`` beside ``test/``, a folder with class folders in ``train/`` and in
            ``test/`` (or ``val/``), or, where ``train`` is given, any set for zero-shot classification.
        train: The part to learn from, where it lies elsewhere.
        classnames: Names of the classes, or the name of a set of them, instead of the set's.

    Raises:
        ValueError: If a part is missing or cannot be used as it is, or their classes differ.
    """
    root = Path(data).expanduser()
    if train is None:
        learned, scored = root / "train", _scored(root)
        if not learned.is_dir():
            raise ValueError(f"{root}: no folder train/ to learn from; put it beside test/, or name it with train:")
    else:
        learned, scored = Path(train).expanduser(), _scored(root)
    parts = TrainTest(
        train=open_classification(learned, classnames=classnames),
        test=open_classification(scored, classnames=classnames),
    )
    _require_same_classes(parts, learned, scored)
    return parts


def _scored(root: Path) -> Path:
    """The folder of the scored part: the root itself, unless it holds class folders of both parts."""
    for name in _TEST:
        part = root / name
        if (root / "train").is_dir() and part.is_dir() and not (part / "nshards.txt").is_file():
            return part
    return root


def _require_same_classes(parts: TrainTest, learned: Path, scored: Path) -> None:
    mine, theirs = parts.train.classnames, parts.test.classnames
    if mine == theirs:
        return
    if len(mine) != len(theirs):
        raise ValueError(f"{learned} has {len(mine)} classes, {scored} has {len(theirs)}; labels would not agree")
    label = next(number for number, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    raise ValueError(
        f"class {label} is {mine[label]!r} in {learned}, but {theirs[label]!r} in {scored}; name the folders alike"
    )
