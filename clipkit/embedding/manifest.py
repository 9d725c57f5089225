"""``manifest.json`` of a folder of embeddings: what made them, and which parts are there."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clipkit.config.json_text import parse_json
from clipkit.config.names import DISTRIBUTION
from clipkit.data.atomic import write_atomically
from clipkit.embedding.parts import Part
from clipkit.embedding.write import KINDS, file_of
from clipkit.encoder import Encoder
from clipkit.evaluation.digests import digest
from clipkit.evaluation.fingerprints import encoder_hashes

NAME, DONE = "manifest.json", "parts"
FORMAT = 1
_BLOCK = 1 << 20
DTYPES = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Made:
    """What embeddings are made of; equal for all parts of a folder.

    Args:
        model: What the user called the model.
        weights: SHA-256 of its weights.
        preprocessing: SHA-256 of its preprocessing of pictures, and of the tokens of some texts.
        data: SHA-256 of the names and states of all parts, in order.
        dim: Width of the embeddings.
        dtype: ``float16`` or ``float32``.
        parts: How many parts there are.
        place: The data as the user named it.
        thumbnail: Longer side of the thumbnails in pixels, 0 without.
        averaged: Whether the weights are a run's moving average; search loads the same.
    """

    model: str
    weights: str
    preprocessing: str
    data: str
    dim: int
    dtype: str
    parts: int
    place: str
    thumbnail: int
    averaged: bool = False

    @classmethod
    def of(cls, encoder: Encoder, parts: list[Part], *, place: str, dtype: str, thumbnail: int) -> Made:
        """What this encoder would make of these parts.

        Raises:
            ValueError: If there is no such type.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not known; take one of {', '.join(DTYPES)}")
        hashes = encoder_hashes(encoder)
        return cls(
            model=encoder.info.model,
            weights=str(hashes["weights"]),
            preprocessing=str(hashes["preprocessing"]),
            data=digest([[part.name, part.state] for part in parts]),
            dim=int(encoder.info.config["embed_dim"]),
            dtype=DTYPES[dtype],
            parts=len(parts),
            place=place,
            thumbnail=thumbnail,
            averaged=encoder.info.averaged,
        )


@dataclass(frozen=True)
class Record:
    """One part that is done.

    Args:
        name: The part.
        state: The state of its data when it was embedded.
        images: Rows of ``img_emb``.
        captions: Rows of ``text_emb``.
        one_each: Whether each picture has one caption, so that row r of ``text_emb`` belongs to row r of ``img_emb``.
        cut: Captions longer than the context, which were cut.
        unreadable: Pictures left out, with the cause.
        files: Size of each file in bytes and CRC-32 of what it holds, by path below the folder.
    """

    name: str
    state: str
    images: int
    captions: int
    one_each: bool
    cut: int
    unreadable: tuple[str, ...] = ()
    files: dict[str, list[int]] = field(default_factory=dict)


def write_record(folder: Path, number: int, record: Record) -> None:
    """Say that a part is done; its files lie there already."""
    _write_json(folder / DONE / f"{number:05d}.json", asdict(record))


def read_record(folder: Path, number: int, part: Part | None = None, *, contents: bool = False) -> Record | None:
    """The record of a part that is whole; None of one that is not.

    Args:
        folder: The folder of embeddings.
        number: Of the part.
        part: The data; those of another state count as not there.
        contents: Whether to read the files too; otherwise their sizes must do.
    """
    try:
        found = parse_json((folder / DONE / f"{number:05d}.json").read_bytes())
        record = Record(**(found | {"unreadable": tuple(found["unreadable"])}))
        whole = _plausible(record, number) and all(
            (folder / name).stat().st_size == size and (not contents or _crc(folder / name) == crc)
            for name, (size, crc) in record.files.items()
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if whole and (part is None or part.state == record.state) else None


def _crc(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


def _plausible(record: Record, number: int) -> bool:
    """Whether a record, which may come from a stranger, speaks of a part's own files in the types that it should."""
    counts = (record.images, record.captions, record.cut)
    return (
        isinstance(record.files, dict)
        and set(record.files) == {file_of(kind, number) for kind in KINDS}
        and all(type(count) is int and count >= 0 for count in counts)
        and type(record.one_each) is bool
        and all(type(text) is str for text in (record.name, record.state, *record.unreadable))
    )


def write_manifest(folder: Path, made: Made, records: list[Record | None]) -> dict[str, Any]:
    """Write the manifest over the parts that are done, and return it."""
    done = [record for record in records if record is not None]
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "clipkit": version(DISTRIBUTION),
        **asdict(made),
        "normalised": True,
        "complete": len(done) == made.parts,
        "images": sum(record.images for record in done),
        "captions": sum(record.captions for record in done),
        "captions_cut": sum(record.cut for record in done),
        "unreadable": sum(len(record.unreadable) for record in done),
        "one_caption_each": all(record.one_each for record in done),
    }
    _write_json(folder / NAME, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of embeddings.

    Raises:
        ValueError: If there is none, or it is none of this format.
    """
    place = folder / NAME
    try:
        found = parse_json(place.read_bytes())
    except OSError as error:
        raise ValueError(f"{folder} is no folder of embeddings: no {NAME}; make one with `clipkit embed`") from error
    except ValueError as error:
        raise ValueError(f"{place}: no JSON ({error}); embed again with --force") from error
    numbers = ("format", "dim", "parts", "images", "captions")
    wanted = dict.fromkeys(numbers, int) | dict.fromkeys(("dtype", "model", "weights", "data"), str)
    if not isinstance(found, dict) or any(not isinstance(found.get(key), kind) for key, kind in wanted.items()):
        raise ValueError(f"{place}: no manifest of embeddings; it needs {', '.join(wanted)}")
    if found["format"] != FORMAT:
        raise ValueError(f"{place}: format {found['format']}, this clipkit reads {FORMAT}; embed again with --force")
    if found["dtype"] not in DTYPES.values() or found["dim"] < 1 or found["parts"] < 0:
        raise ValueError(f"{place}: dtype {found['dtype']!r}, dim {found['dim']}, parts {found['parts']} make no sense")
    return found


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode(errors="replace")))
