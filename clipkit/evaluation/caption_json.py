"""Retrieval sets that a JSON file describes: COCO's captions, and Karpathy's splits of COCO and Flickr."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from clipkit.config.json_text import parse_json
from clipkit.evaluation.samples import ImageFile, RetrievalSet, read_text

_log = logging.getLogger(__name__)


def open_caption_json(path: Path, *, images: str | Path | None = None, split: str = "test") -> RetrievalSet:
    """Open ``captions_val2017.json`` (COCO) or ``dataset_coco.json`` (Karpathy).

    Args:
        path: The file.
        images: The folder of the images; None looks beside the file and in the folders there.
        split: Which split of Karpathy's is read; COCO's files are one each.

    Raises:
        ValueError: If it is neither, a caption or an image is missing, or the split is empty.
    """
    try:
        tree = parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    rows = tree.get("images") if isinstance(tree, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: no list of images; COCO's captions or Karpathy's dataset_*.json are read")
    captions = _karpathy(path, rows, split) if "sentences" in rows[0] else _coco(path, tree)
    places = _Places(path, None if images is None else Path(images).expanduser())
    files = [places.find(name) for name in captions]
    return RetrievalSet(path.stem, [ImageFile(file) for file in files], list(captions.values()))


def _karpathy(path: Path, rows: list[dict[str, Any]], split: str) -> dict[str, tuple[str, ...]]:
    """Captions by image of one split; ``restval`` belongs to training and is one of its own."""
    sizes = Counter(str(row.get("split")) for row in rows)
    if split not in sizes:
        raise ValueError(
            f"{path}: no split {split!r}; there are {', '.join(f'{k} ({n:,})' for k, n in sorted(sizes.items()))}"
        )
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        if row.get("split") == split:
            name = "/".join(str(part) for part in (row.get("filepath"), row.get("filename")) if part)
            found[name] = _captions(path, name, [line.get("raw", "") for line in row["sentences"]])
    return found


def _coco(path: Path, tree: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    lines: dict[Any, list[str]] = {}
    for note in tree.get("annotations", []):
        if "caption" not in note:
            raise ValueError(f"{path}: annotations without captions (instances?); take captions_*.json")
        lines.setdefault(note["image_id"], []).append(note["caption"])
    names = {row["id"]: str(row["file_name"]) for row in tree["images"]}
    strange = sorted(str(number) for number in lines.keys() - names.keys())
    if strange:
        raise ValueError(f"{path}: {len(strange)} captioned images are not listed, such as id {strange[0]}")
    return {name: _captions(path, name, lines.get(number, [])) for number, name in names.items()}


def _captions(path: Path, name: str, lines: list[str]) -> tuple[str, ...]:
    found = tuple(" ".join(line.split()) for line in lines if line.strip())
    if not found:
        raise ValueError(f"{path}: the image {name} has no caption; every image needs at least one")
    return found


class _Places:
    """Where images lie: a folder that the first of them shows, for all."""

    def __init__(self, path: Path, folder: Path | None) -> None:
        self.path = path
        if folder is not None:
            self.folders = [folder]
            return
        near = [path.parent, path.parent.parent]
        self.folders = near + [entry for root in near for entry in sorted(root.iterdir()) if entry.is_dir()]

    def find(self, name: str) -> Path:
        for forms in (name, name.rpartition("/")[2]):
            for number, folder in enumerate(self.folders):
                if (folder / forms).is_file():
                    self.folders.insert(0, self.folders.pop(number))
                    return folder / forms
        looked = ", ".join(str(folder) for folder in self.folders[:4])
        raise ValueError(f"{self.path}: the image {name} is in none of {looked}; name its folder with images=DIR")
