"""CLIP_benchmark's WebDataset layout, as ``clip_benchmark_export_wds`` writes it.

``test/0.tar ...``, ``test/nshards.txt``, ``classnames.txt``, ``zeroshot_classification_templates.txt`` (with ``{c}``) and
``dataset_type.txt`` (absent: classification). A sample holds an image and its label ``.cls`` or its captions ``.txt``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clipkit.data.index import ShardIndex, load_index
from clipkit.data.listing import read_lists
from clipkit.evaluation.samples import (
    IMAGE_EXTENSIONS,
    ClassificationSet,
    ImageFile,
    RetrievalSet,
    check_templates,
    read_lines,
    read_span,
    read_text,
    split_captions,
)

KINDS = ("classification", "retrieval", "multilabel")


@dataclass(frozen=True)
class Layout:
    """The folders of one set: ``root`` holds the names, ``split`` the shards."""

    root: Path
    split: Path

    @property
    def kind(self) -> str:
        """One of ``KINDS``, as ``dataset_type.txt`` says."""
        path = self.root / "dataset_type.txt"
        kind = read_text(path).strip().lower() if path.is_file() else "classification"
        if kind not in KINDS:
            raise ValueError(f"{path}: unknown type {kind!r}; known are {', '.join(KINDS)}")
        return kind


def find_layout(path: Path) -> Layout | None:
    """The layout that a folder has, given its root or its folder of shards; None for any other folder."""
    if (path / "test" / "nshards.txt").is_file():
        return Layout(root=path, split=path / "test")
    if (path / "nshards.txt").is_file():
        return Layout(root=path.parent, split=path)
    if (path / "test").is_dir() and any((path / "test").glob("*.tar")):
        raise ValueError(f"{path / 'test'}: shards without nshards.txt; write the number of shards into it")
    return None


def open_classification_shards(
    layout: Layout, *, classnames: Sequence[str] | None, templates: Sequence[str] | None
) -> ClassificationSet:
    """Open a classification set.

    Args:
        layout: Its folders.
        classnames: Instead of those of the set.
        templates: Instead of those of the set.

    Raises:
        ValueError: If anything of it is missing, damaged or contradictory, with place and cure.
    """
    require_kind(layout, "classification", "zero_shot")
    names_file, templates_file = layout.root / "classnames.txt", layout.root / "zeroshot_classification_templates.txt"
    if classnames is None:
        if not names_file.is_file():
            raise ValueError(f"{names_file}: missing; write one class name a line, in the order of the labels")
        classnames = read_lines(names_file)
    if templates is None and templates_file.is_file():
        templates = check_templates(read_lines(templates_file), str(templates_file))
    images, labels = [], []
    for image, text in _samples(layout, "cls"):
        images.append(image)
        labels.append(_label(text, image, len(classnames)))
    return ClassificationSet(
        name=layout.root.name,
        images=images,
        labels=torch.tensor(labels, dtype=torch.int64),
        classnames=tuple(classnames),
        templates=None if templates is None else tuple(templates),
    )


def open_retrieval_shards(layout: Layout) -> RetrievalSet:
    """Open a retrieval set.

    Raises:
        ValueError: If anything of it is missing, damaged or contradictory, with place and cure.
    """
    require_kind(layout, "retrieval", "retrieval")
    images, captions = [], []
    for image, text in _samples(layout, "txt"):
        images.append(image)
        captions.append(split_captions(text))
        if not captions[-1]:
            raise ValueError(f"{image}: its .txt holds no caption; write one caption a line, or leave the image out")
    return RetrievalSet(name=layout.root.name, images=images, captions=captions)


def require_kind(layout: Layout, kind: str, task: str) -> None:
    """Refuse a set of another kind than a task takes.

    Raises:
        ValueError: With the task that it is for.
    """
    if layout.kind != kind:
        other = {
            "classification": "--task zero_shot",
            "retrieval": "--task retrieval",
            "multilabel": "--task multi_label",
        }[layout.kind]
        says = f"dataset_type.txt says {layout.kind}, the task {task} takes {kind}"
        raise ValueError(f"{layout.root}: {says}; evaluate it with {other}")


def _shards(split: Path) -> list[Path]:
    """The shards in order, exactly those that nshards.txt counts: one lost tar would give a plausible figure."""
    counter = split / "nshards.txt"
    text = read_text(counter).strip()
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{counter}: {text!r} is no number of shards; write how many tars there are")
    expected = [f"{number}.tar" for number in range(int(text))]
    found = {path.name for path in split.glob("*.tar")}
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    if missing or extra:
        parts = [
            f"{len(names)} {word} ({names[0]})" for names, word in ((missing, "missing"), (extra, "extra")) if names
        ]
        cure = "fetch the set again, or correct nshards.txt"
        raise ValueError(f"{counter} says {text} shards, 0.tar to {expected[-1]}: {' and '.join(parts)}; {cure}")
    return [split / name for name in expected]


def _samples(layout: Layout, field: str) -> Iterator[tuple[ImageFile, str]]:
    """Each sample's image and the text of its field."""
    for image, data in field_bytes(layout, field):
        try:
            yield image, data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{image}: .{field} is no UTF-8 at byte {error.start}; pack it again") from error


def field_bytes(layout: Layout, field: str) -> Iterator[tuple[ImageFile, bytes]]:
    """Each sample's image and the bytes of its field, in order.

    Raises:
        ValueError: If shards are missing, or a sample lacks its image or the field.
    """
    for shard in _shards(layout.split):
        index = load_index(shard)
        _require_listed(shard, len(index))
        for sample in range(len(index)):
            place = f"{shard}, sample {index.name(sample)!r}"
            extension = next((name for name in IMAGE_EXTENSIONS if _has(index, name, sample)), None)
            if extension is None:
                raise ValueError(f"{place}: no image; the fields {', '.join(IMAGE_EXTENSIONS)} are read")
            if not _has(index, field, sample):
                raise ValueError(f"{place}: no .{field}; every sample needs one, the whole set is refused")
            offset, length = (int(column[sample]) for column in index.fields[field])
            start, size = (int(column[sample]) for column in index.fields[extension])
            yield (
                ImageFile(path=shard, key=index.name(sample), offset=start, length=size),
                read_span(shard, offset, length),
            )


def _require_listed(shard: Path, samples: int) -> None:
    """Hold a shard against the folder's ``index.json``, where there is one: a tar that lost its end at a sample's edge reads well."""
    listed = read_lists(str(shard.parent), None)[0].get(shard.name)
    if listed is not None and (listed["count"], listed["size"]) != (samples, shard.stat().st_size):
        raise ValueError(
            f"{shard}: {samples:,} samples in {shard.stat().st_size:,} bytes, but index.json beside it lists {listed['count']:,} in "
            f"{listed['size']:,}; fetch the shard again, or list it anew with clipkit data index"
        )


def _has(index: ShardIndex, field: str, sample: int) -> bool:
    return field in index.fields and int(index.fields[field][0][sample]) >= 0


def _label(text: str, image: ImageFile, classes: int) -> int:
    try:
        label = int(text)
    except ValueError:
        raise ValueError(f"{image}: the label {text[:40]!r} is no whole number; pack the set again") from None
    if not 0 <= label < classes:
        cure = "complete classnames.txt (one line a class), or give the classnames that belong to this set"
        raise ValueError(f"{image}: label {label}, but there are {classes} class names (0 to {classes - 1}); {cure}")
    return label
