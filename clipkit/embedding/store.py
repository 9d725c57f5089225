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
_PICTURES = [("key", "string"), ("image_path", "string"), ("caption", "string"), ("thumbnail", "binary")]
_WORDS = [("caption", "string"), ("image_row", "int64")]


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
        if within is None or not 0 <= within < len(found):
            place = self.folder / file_of(CAPTIONS, part)
            raise ValueError(f"{place}: image_row {within} of {len(found)} pictures; embed again with --force")
        return Shown(
            key=found["key"][within].as_py() or "",
            image_path=found["image_path"][within].as_py() or "",
            caption=(found["caption"][within].as_py() if caption is None else caption) or "",
            thumbnail=found["thumbnail"][within].as_py(),
        )

    def place(self, kind: str, row: int) -> Path:
        """The file that holds the embedding of a row; as ``shown``."""
        held, name = (self.images, IMAGES) if kind == "images" else (self.texts, TEXTS)
        return self.folder / file_of(name, locate(held, row)[0])

    def _read_table(self, kind: str, part: int) -> Any:
        pa = pyarrow()
        place = self.folder / file_of(kind, part)
        schema = pa.schema(_WORDS) if kind == CAPTIONS else pa.schema(_PICTURES)
        rows = len(self.texts[part] if kind == CAPTIONS else self.images[part])
        try:
            found = pa.parquet.read_metadata(place).num_rows  # before anything that takes memory
            if found == rows:
                return pa.parquet.read_table(place, columns=schema.names).cast(schema)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{place} cannot be read ({error}); embed again with --force") from error
        raise ValueError(f"{place} has {found} rows for {rows} embeddings; embed again with --force")

    def _rows(self, kind: str) -> list[Rows]:
        return [self._rows_of(kind, part) for part in range(self.manifest["parts"])]

    def _rows_of(self, kind: str, part: int) -> Rows:
        record = read_record(self.folder, part)
        if record is None:
            raise ValueError(f"{self.folder}: part {part} is not whole; run the same `clipkit embed` again")
        shape = (record.images if kind == IMAGES else record.captions, self.dim)
        if not shape[0]:
            return np.empty(shape, self.manifest["dtype"])  # a file of no rows cannot be mapped
        place = self.folder / file_of(kind, part)
        try:
            rows: Rows = np.load(place, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{place} cannot be read ({error}); embed again with --force") from error
        if rows.shape != shape or rows.dtype != self.manifest["dtype"]:
            what = f"{rows.dtype} {rows.shape}"
            raise ValueError(
                f"{place}: {what}, its record says {self.manifest['dtype']} {shape}; embed again with --force"
            )
        return rows


def locate(parts: Sequence[Rows], row: int) -> tuple[int, int]:
    """The part that holds a row counted over all parts, and the row within it."""
    for number, part in enumerate(parts):
        if row < len(part):
            return number, row
        row -= len(part)
    raise IndexError("there are fewer rows")
