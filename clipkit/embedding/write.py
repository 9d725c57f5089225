"""The files of one part, in clip-retrieval's layout: ``img_emb/``, ``text_emb/``, ``metadata/``, and ``texts/`` beside them.

Row r of ``img_emb/img_emb_00007.npy`` is row r of ``metadata/metadata_00007.parquet`` (``image_path``, ``key``, ``caption``,
``captions``, ``vector`` as a fixed-size list, ``thumbnail`` as JPEG bytes), and row r of ``text_emb`` is row r of ``texts``
(``caption``, ``image_row``). autofaiss, clip-retrieval, embedding-atlas and Spotlight read those files as they are.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.names import DISTRIBUTION
from clipkit.data.atomic import write_atomically
from clipkit.embedding.parts import Item

IMAGES, TEXTS, METADATA, CAPTIONS = "img_emb", "text_emb", "metadata", "texts"
KINDS = (IMAGES, TEXTS, METADATA, CAPTIONS)
Rows = NDArray[np.float16] | NDArray[np.float32]


def file_of(kind: str, number: int) -> str:
    """Path of a part's file below the folder.

    >>> file_of("img_emb", 7), file_of("metadata", 7)
    ('img_emb/img_emb_00007.npy', 'metadata/metadata_00007.parquet')
    """
    return f"{kind}/{kind}_{number:05d}.{'npy' if kind in (IMAGES, TEXTS) else 'parquet'}"


def write_part(
    folder: Path, number: int, *, items: Sequence[Item], image: Rows, text: Rows, thumbnails: Sequence[bytes | None]
) -> dict[str, list[int]]:
    """Write one part.

    Args:
        folder: The folder of embeddings.
        number: Of the part.
        items: The pictures (N).
        image: Their embeddings (N, D).
        text: Embeddings of all their captions, picture by picture (M, D).
        thumbnails: Of each picture (N).

    Returns:
        Size of each file in bytes and CRC-32 of what it holds, by path below the folder.
    """
    pa = pyarrow()
    captions = [caption for item in items for caption in item.captions]
    rows = [row for row, item in enumerate(items) for _ in item.captions]
    assert len(image) == len(items) == len(thumbnails), f"{len(image)} embeddings for {len(items)} pictures"
    assert len(text) == len(captions), f"{len(text)} embeddings for {len(captions)} captions"
    metadata = pa.table(
        {
            "image_path": pa.array([_utf8(item.place or str(item.image.path)) for item in items], pa.string()),
            "key": pa.array([_utf8(item.key) for item in items], pa.string()),
            "caption": pa.array([item.captions[0] if item.captions else None for item in items], pa.string()),
            "captions": pa.array([list(item.captions) for item in items], pa.list_(pa.string())),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(image.reshape(-1)), image.shape[1]),
            "thumbnail": pa.array(list(thumbnails), pa.binary()),
        }
    )
    texts = pa.table({"caption": pa.array(captions, pa.string()), "image_row": pa.array(rows, pa.int64())})
    contents = {IMAGES: _npy(image), TEXTS: _npy(text), METADATA: _parquet(pa, metadata), CAPTIONS: _parquet(pa, texts)}
    written = {}
    for kind, content in contents.items():
        path = folder / file_of(kind, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
        written[file_of(kind, number)] = [len(content), zlib.crc32(content)]
    return written


def pyarrow() -> Any:
    """The package, or what to install.

    Raises:
        ValueError: If it is not there.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"embeddings need pyarrow: pip install '{DISTRIBUTION}[search]'") from error
    return pyarrow


def _utf8(name: str) -> str:
    """A file's name as text; bytes of it that are no UTF-8 are shown as U+FFFD."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _npy(rows: Rows) -> bytes:
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def _parquet(pa: Any, table: Any) -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()
