"""A folder of embeddings, open for reading: rows stay mapped files, words and thumbnails are read when they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.embedding.manifest import read_manifest, read_record
from clipkit.embedding.write import CAPTIONS, IMAGES, METADATA, TEXTS, Rows, file_of, pyarrow

_TABLES = 4  # parts whose words and thumbnails are kept


@dataclass(frozen=True)
class Shown:
    """What a person sees of one row.

    Args:
        key: Of the picture.
        image_path: The file or the shard that holds it.
        caption: Its first caption, or the caption found; empty without.
        thumbnail: JPEG bytes, or None.
    """

    key: str
    image_path: str
    caption: str
    thumbnail: bytes | None


class Store:
    """A folder that ``clipkit embed`` made.

    Args:
        folder: The folder.

    Raises:
        ValueError: If it is none, is not complete, or its files do not fit its manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        if not self.manifest.get("complete"):
            raise ValueError(f"{folder}: embedding it was not finished; run the same `clipkit embed` again, it goes on")
        self.images = self._rows(IMAGES)
        self.texts = self._rows(TEXTS)
        self._table = lru_cache(_TABLES)(self._read_table)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.manifest["dim"])

    def shown(self, kind: str, row: int) -> Shown:
        """What lies at a row.

        Args:
            kind: ``images`` or ``texts``.
            row: Counted over all parts.
        """
        part, within = locate(self.images if kind == "images" else self.texts, row)
        caption = None
        if kind == "texts":
            texts = self._table(CAPTIONS, part)
            caption, within = texts["caption"][within].as_py(), texts["image_row"][within].as_py()
        found = self._table(METADATA, part)
        return Shown(
            key=found["key"][within].as_py(),
            image_path=found["image_path"][within].as_py(),
            caption=(found["caption"][within].as_py() if caption is None else caption) or "",
            thumbnail=found["thumbnail"][within].as_py(),
        )

    def _read_table(self, kind: str, part: int) -> Any:
        pa = pyarrow()
        wanted = {METADATA: ["key", "image_path", "caption", "thumbnail"], CAPTIONS: ["caption", "image_row"]}
        place = self.folder / file_of(kind, part)
        try:
            return pa.parquet.read_table(place, columns=wanted[kind])
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{place} cannot be read ({error}); embed again with --force") from error

    def _rows(self, kind: str) -> list[Rows]:
        found = []
        for part in range(self.manifest["parts"]):
            place = self.folder / file_of(kind, part)
            if read_record(self.folder, part) is None:
                raise ValueError(f"{self.folder}: part {part} is not whole; run the same `clipkit embed` again")
            try:
                rows = np.load(place, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                rows = _empty(place, error)
            if rows.ndim != 2 or rows.shape[1] != self.dim or rows.dtype != self.manifest["dtype"]:
                what = f"{rows.dtype} {rows.shape}"
                raise ValueError(f"{place}: {what}, the manifest says {self.manifest['dtype']} (N, {self.dim})")
            found.append(rows)
        return found


def _empty(place: Path, error: Exception) -> Rows:
    """A file of no rows cannot be mapped; any other failure is one."""
    try:
        rows: Rows = np.load(place, allow_pickle=False)
    except (OSError, ValueError):
        rows = np.empty((1, 0), np.float16)
    if len(rows):
        raise ValueError(f"{place} cannot be read ({error}); embed again with --force") from error
    return rows


def locate(parts: Sequence[Rows], row: int) -> tuple[int, int]:
    """The part that holds a row counted over all parts, and the row within it."""
    for number, part in enumerate(parts):
        if row < len(part):
            return number, row
        row -= len(part)
    raise IndexError("there are fewer rows")
