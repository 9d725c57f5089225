"""Embed data into a folder, part by part: a part that is done is done, whatever happens after."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit import distributed
from clipkit.data.urls import shown
from clipkit.embedding.manifest import (
    DONE,
    NAME,
    Made,
    Record,
    read_manifest,
    read_record,
    write_manifest,
    write_record,
)
from clipkit.embedding.parts import Item, Part, parts_of
from clipkit.embedding.pictures import batches
from clipkit.embedding.write import KINDS, pyarrow, write_part
from clipkit.encoder import Encoder
from clipkit.evaluation.split import agree_on_error
from clipkit.evaluation.threads import beside_workers

_log = logging.getLogger(__name__)
_SAME = ("weights", "preprocessing", "data", "dim", "dtype", "parts", "thumbnail")
_OURS = (*KINDS, DONE)


def embed(
    encoder: Encoder,
    data: str | Path,
    out: Path,
    *,
    dtype: str = "fp16",
    batch_size: int = 64,
    workers: int = 0,
    thumbnail: int = 96,
    force: bool = False,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Embed pictures and their captions; called on all ranks, each takes every W-th part.

    The same call again goes on where it stopped. Memory holds one part: its embeddings and thumbnails, one batch of pixels.

    Args:
        encoder: The encoder, the same on every rank.
        data: What ``parts_of`` takes.
        out: The folder.
        dtype: ``fp16`` or ``fp32``: what is stored. Rows have unit norm before they are rounded.
        batch_size: Pictures of one forward.
        workers: Processes a rank that read and decode.
        thumbnail: Longer side of the thumbnails in pixels, 0 without.
        force: Whether embeddings of something else may be replaced.
        on_part: Told after each part of this rank how many it has done, of how many.

    Returns:
        The manifest.

    Raises:
        ValueError: If the data cannot be read, ``out`` holds something else, or embeddings are not finite; on every rank.
    """
    pyarrow()
    parts = parts_of(data)
    made = Made.of(encoder, parts, place=shown(str(data)), dtype=dtype, thumbnail=thumbnail)
    distributed.on_rank_0(lambda: _begin(out, made, force=force))
    mine = range(distributed.rank(), len(parts), distributed.world_size())
    error: str | None = None
    try:
        for count, number in enumerate(mine, start=1):
            if read_record(out, number, parts[number], contents=True) is None:
                record = _embed_part(encoder, parts[number], out, number, made, batch_size, workers)
                write_record(out, number, record)
            on_part(count, len(mine))
    except (ValueError, OSError) as found:
        error = str(found)
    agree_on_error(error)
    records = [read_record(out, number, part) for number, part in enumerate(parts)]
    distributed.on_rank_0(lambda: _end(out, made, records))
    return read_manifest(out)


def _begin(out: Path, made: Made, *, force: bool) -> None:
    """Make the folder, or see that it is one that this call may go on with."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder")
    if (out / NAME).is_file():
        try:
            found = read_manifest(out)
        except ValueError:
            if not force:
                raise
            found = {}
        other = [key for key in _SAME if found.get(key) != getattr(made, key)]
        if not other:
            return
        if not force and any((out / DONE).glob("*.json")):  # before the first part is done there is nothing to lose
            words = f"{out} holds embeddings of {found['model']} with other {', '.join(other)}"
            raise ValueError(f"{words}; name another folder, or replace them with --force")
        for name in _OURS:
            shutil.rmtree(out / name, ignore_errors=True)
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {NAME}; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out, made, [])


def _end(out: Path, made: Made, records: list[Record | None]) -> None:
    if all(record is None or not record.images for record in records):
        raise ValueError(f"{made.place}: none of the pictures can be read{_first(records)}")
    manifest = write_manifest(out, made, records)
    if manifest["unreadable"]:
        text = "%d pictures cannot be read and were left out%s; all are listed in %s"
        _log.warning(text, manifest["unreadable"], _first(records), out / DONE)
    if manifest["captions_cut"]:
        _log.warning("%d captions are longer than the context and were cut", manifest["captions_cut"])


def _first(records: list[Record | None]) -> str:
    """The first picture that cannot be read, in brackets."""
    return next((f" ({record.unreadable[0]})" for record in records if record is not None and record.unreadable), "")


def _embed_part(
    encoder: Encoder, part: Part, out: Path, number: int, made: Made, batch_size: int, workers: int
) -> Record:
    with part.read() as items:
        return _embed_items(encoder, items, part, out, number, made, batch_size, workers)


def _embed_items(
    encoder: Encoder,
    items: list[Item],
    part: Part,
    out: Path,
    number: int,
    made: Made,
    batch_size: int,
    workers: int,
) -> Record:
    rows: list[int] = []
    thumbnails: list[bytes | None] = []
    unreadable: list[str] = []
    image: list[Tensor] = [encoder.encode_image([])]
    read = batches(items, encoder.preprocess, batch_size=batch_size, workers=workers, thumbnail=made.thumbnail)
    with beside_workers(encoder, workers):
        for batch in read:
            image.append(encoder.encode_image(batch.pixels, batch_size=batch_size))
            rows += batch.rows
            thumbnails += batch.thumbnails
            unreadable += batch.unreadable
    kept = [items[row] for row in rows]
    before = encoder.texts_cut
    text = encoder.encode_text([caption for item in kept for caption in item.captions])
    kind = np.float16 if made.dtype == "float16" else np.float32
    files = write_part(
        out,
        number,
        items=kept,
        image=_finite(torch.cat(image), part).astype(kind),
        text=_finite(text, part).astype(kind),
        thumbnails=thumbnails,
    )
    return Record(
        name=part.name,
        state=part.state,
        images=len(kept),
        captions=len(text),
        one_each=all(len(item.captions) == 1 for item in kept),
        cut=encoder.texts_cut - before,
        unreadable=tuple(unreadable),
        files=files,
    )


def _finite(rows: Tensor, part: Part) -> Any:
    bad = int((~torch.isfinite(rows)).any(1).sum())
    if bad:
        raise ValueError(f"{part.name}: {bad} of {len(rows)} embeddings hold NaN or infinity; the weights are broken")
    return rows.numpy()
