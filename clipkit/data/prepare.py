"""From an entry of a source to the sample that is packed: the file read, its header checked, resized or stripped if asked."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from clipkit.config.json_text import parse_json
from clipkit.data.images import MOST_ASPECT, MOST_BYTES, MOST_PIXELS, BadSample, decode_image
from clipkit.data.loose import Entry, Skipped
from clipkit.data.strip import strip_metadata

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x112
_QUALITY = 95


@dataclass(frozen=True)
class Prepare:
    """How images and metadata are changed on their way into a shard.

    Args:
        resize: The shorter side to shrink larger images to, in pixels; None leaves every file as it is.
        strip_exif: Whether EXIF, XMP, IPTC and comments are removed.
        fields: Keys of a sample's JSON that are kept, besides `captions`; None keeps all.
    """

    resize: int | None = None
    strip_exif: bool = False
    fields: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Prepared:
    """A sample as it is written, but for its number.

    Args:
        members: Bytes by extension, the image first.
        stem: What its key says to people.
        draw: In [0, 1), from the hash of the image file as it was found: equal files draw the same.
        digest: That hash.
    """

    members: dict[str, bytes]
    stem: str
    draw: float
    digest: bytes


@dataclass(frozen=True)
class Chunk:
    """Entries that go to a worker together."""

    entries: tuple[Entry | Skipped, ...]

    def __str__(self) -> str:
        return f"{self.entries[0].place} and {len(self.entries) - 1} more"


def prepare_chunk(prepare: Prepare, chunk: Chunk) -> list[Prepared | Skipped]:
    """What becomes of each entry of a chunk."""
    return [entry if isinstance(entry, Skipped) else _prepare_one(prepare, entry) for entry in chunk.entries]


def _prepare_one(prepare: Prepare, entry: Entry) -> Prepared | Skipped:
    data, cause = _read(entry)
    if data is None:
        return Skipped(entry.place, cause)
    checked = _check(data)
    if isinstance(checked, str):
        return Skipped(entry.place, checked)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        data, kind = _change(prepare, data, *checked)
    except (ValueError, BadSample):
        return Skipped(entry.place, "damaged")
    members = {kind: data, "txt": entry.text.encode("utf-8", "replace")}
    metadata = _metadata(entry.json, prepare.fields)
    if metadata is not None:
        members["json"] = metadata
    if entry.label is not None:
        members["cls"] = str(entry.label).encode()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", entry.stem).strip("-")[:40]
    return Prepared(members, stem, int.from_bytes(digest[:7], "big") / 2**56, digest)


def _read(entry: Entry) -> tuple[bytes | None, str]:
    """The image's bytes; or None and the cause why not."""
    if isinstance(entry.image, bytes):
        data = entry.image
        if len(data) > MOST_BYTES:
            return None, "too_large"
        return (data, "") if data else (None, "empty")
    try:
        if not entry.image.is_file():
            return None, "missing"
        if entry.image.stat().st_size > MOST_BYTES:
            return None, "too_large"
        data = entry.image.read_bytes()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None, "unreadable"
    return (data, "") if data else (None, "empty")


def _check(data: bytes) -> tuple[str, tuple[int, int], int] | str:
    """Extension of the real format, width and height, and EXIF's orientation; or the cause why it cannot be trained on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, for which there is a bound below
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                (width, height), kind = image.size, _EXTENSIONS[str(image.format)]
                orientation = image.getexif().get(_ORIENTATION, 1)
    except Image.DecompressionBombError:
        return "too_large"
    except UnidentifiedImageError:
        return "format"
    except Exception:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        return "damaged"
    if width < 1 or height < 1:
        return "damaged"
    if width * height > MOST_PIXELS:
        return "too_large"
    if max(width, height) > MOST_ASPECT * min(width, height):
        return "aspect"
    return kind, (width, height), orientation if isinstance(orientation, int) else 1


def _change(prepare: Prepare, data: bytes, kind: str, size: tuple[int, int], orientation: int) -> tuple[bytes, str]:
    if prepare.resize is not None and min(size) > prepare.resize:
        return _shrink(data, kind, prepare.resize)
    return (strip_metadata(data, kind, orientation) if prepare.strip_exif else data), kind


def _shrink(data: bytes, kind: str, shorter: int) -> tuple[bytes, str]:
    """Decode as training does (upright, on white, eight bits), shrink, and write again; nothing but pixels is kept."""
    image = Image.fromarray(decode_image(data).permute(1, 2, 0).numpy())
    share = shorter / min(image.size)
    width, height = (max(shorter, round(side * share)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    if kind == "jpg":
        image.save(out, "JPEG", quality=_QUALITY)
    elif kind == "webp":
        image.save(out, "WEBP", quality=_QUALITY)
    else:
        image.save(out, "PNG")
        kind = "png"
    return out.getvalue(), kind


def _metadata(data: bytes | None, fields: tuple[str, ...] | None) -> bytes | None:
    if data is None or fields is None:
        return data
    kept = {key: value for key, value in parse_json(data).items() if key in fields or key == "captions"}
    return json.dumps(kept, ensure_ascii=False).encode("utf-8", "replace") if kept else None
