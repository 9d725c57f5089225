"""Bytes to pixels: an allow-list of formats, the header before the pixels, torchvision's decoders, else Pillow.

torchvision is 2 to 3 times faster than Pillow and equal to it for plain JPEG; everything else (PNG, palettes,
transparency, 16 bits, CMYK, animations, odd files) goes through Pillow and one set of colour rules.

The rules are ours (EXIF turns the image, transparency lies on white, 16 bits are scaled) or open_clip's, for runs that
must see what its trainer saw (EXIF ignored, ``convert("RGB")`` after the resize). Formats and caps are the same in both.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg as torch_jpeg

from clipkit.data.pixels import PillowImage, Pixels

POLICIES = ("clipkit", "open_clip")
MOST_BYTES = 64 << 20
MOST_PIXELS = 50_000_000
MOST_SCANNED = 1_000_000_000
"""Pixels times scans of a JPEG: a progressive one has about ten; a file of a few kilobytes could keep the decoder busy for hours."""
MOST_ASPECT = 200  # beyond it a short-side resize of a small file would fill the memory
PngImagePlugin.MAX_TEXT_MEMORY = 4 << 20  # it holds 64 MiB of a PNG's texts otherwise, which nobody here reads
_WHITE = (255, 255, 255, 255)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG start-of-frame markers


class BadSample(Exception):
    """A sample that cannot be used.

    Args:
        cause: One word, the name under which it is counted: ``empty``, ``format``, ``too_large``, ``truncated``, ...
        detail: What was found, for a person.
    """

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}"


@dataclass(frozen=True)
class Decode:
    """How image files become pixels.

    Args:
        policy: ``clipkit`` or ``open_clip``: whose colour rules.
        shrink_to: JPEGs may be decoded at a half, a quarter or an eighth of their size (by the DCT: faster, not equal) as
            long as both sides keep this many pixels; 0 is never.
    """

    policy: str = "clipkit"
    shrink_to: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"image policy {self.policy!r} is none of {', '.join(POLICIES)}")


class Decoded(NamedTuple):
    """An image, and what was approximated in it."""

    pixels: Pixels
    noted: tuple[str, ...] = ()
    """``animated``: of several frames the first was taken."""


class _Header(NamedTuple):
    height: int
    width: int
    plain: bool  # whether torchvision's decoder gives the same as Pillow and our colour rules
    direct: bool  # whether the pixels are stored as 8-bit colours or greys, which are resized as they are


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    raise BadSample("format", f"starts with {data[:12]!r}; JPEG, PNG, WebP, GIF and BMP are read")


def _jpeg_header(data: bytes) -> _Header:
    """Size and number of channels from the frame segment; plain if it has three channels or one."""
    at, size = 2, None
    while at + 9 < len(data):
        if data[at] != 0xFF:
            raise BadSample("damaged", f"no JPEG segment at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD7 or marker == 0x01:  # fill bytes and markers without a body
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            height, width, channels = struct.unpack_from(">HHB", data, at + 5)
            size = height, width, channels
        if marker == 0xDA and size is not None:
            return _Header(size[0], size[1], size[2] in (1, 3), size[2] in (1, 3))
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise BadSample("truncated", "the JPEG ends inside its header")


def _png_header(data: bytes) -> _Header:
    if len(data) < 33:
        raise BadSample("truncated", "the PNG ends inside its header")
    width, height = struct.unpack_from(">II", data, 16)
    return _Header(height, width, False, False)


def _check(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise BadSample("damaged", f"{width} x {height} pixels")
    if height * width > MOST_PIXELS:
        raise BadSample("too_large", f"{width} x {height} pixels; at most {MOST_PIXELS:,} are read")
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise BadSample("aspect", f"{width} x {height} pixels; at most 1:{MOST_ASPECT} is read")


def _with_torchvision(data: bytes, *, turn: bool) -> Tensor:
    """A JPEG. PNGs are Pillow's: torchvision 0.29's decoder of them ends the process (SIGSEGV) on damaged rows."""
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels: Tensor = torch_jpeg(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=turn)
    return pixels


def _with_pillow(data: bytes, kind: str, how: Decode, *, shrink: bool) -> Decoded:
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            _check(image.height, image.width)
            if shrink:
                return Decoded(_shrunk(image, how))
            if how.policy == "clipkit":
                pixels: Pixels = image_tensor(image)
            elif image.mode in ("RGB", "L"):
                pixels = _tensor(image.convert("RGB"))
            else:
                pixels = PillowImage(image.copy(), image.height, image.width)
            return Decoded(pixels, ("animated",) if _is_animated(image) else ())
    except (BadSample, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("too_large", f"{kind}: {error}") from error
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        cause = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise BadSample(cause, f"{kind}: {error}") from error


def _shrunk(image: Image.Image, how: Decode) -> PillowImage:
    """A JPEG decoded at a fraction of its size."""
    width, height = image.size
    turn = image.getexif().get(ExifTags.Base.Orientation, 1) if how.policy == "clipkit" else 1
    image.draft(None, (how.shrink_to, how.shrink_to))  # the smallest of 1/1 to 1/8 that is no smaller
    step = max(round(width / image.width), round(height / image.height))
    if turn in (5, 6, 7, 8):
        width, height = height, width
    turned = ImageOps.exif_transpose(image) if turn != 1 else image
    # the last column and row may stand for fewer pixels than the others; after a mirroring they come first
    over = (
        (turned.height * step - height) * (turn in (3, 4, 7, 8)),
        (turned.width * step - width) * (turn in (2, 3, 6, 7)),
    )
    return PillowImage(turned.convert("RGB"), height, width, step, over)


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a second frame that is damaged: the first one is good
        return True


def decode(data: bytes, how: Decode | None = None) -> Decoded:
    """Decode one image file.

    Args:
        data: The file: JPEG, PNG, WebP, GIF or BMP, told by its first bytes.
        how: Colour rules and speed; unset: ours, and every pixel.

    Raises:
        BadSample: If it is empty, of another format, too large, cut short or damaged.
    """
    how = how or Decode()
    if not data:
        raise BadSample("empty", "a file of no bytes")
    if len(data) > MOST_BYTES:
        raise BadSample("too_large", f"{len(data):,} bytes; at most {MOST_BYTES:,} are read")
    kind = _format(data)
    shrink = False
    if kind in ("JPEG", "PNG"):
        header = _jpeg_header(data) if kind == "JPEG" else _png_header(data)
        _check(header.height, header.width)
        if kind == "JPEG" and (scans := data.count(b"\xff\xda")) * header.height * header.width > MOST_SCANNED:
            raise BadSample("too_large", f"{scans:,} scans of {header.width} x {header.height} pixels")
        shrink = kind == "JPEG" and header.plain and 0 < 2 * how.shrink_to <= min(header.height, header.width)
        if kind == "JPEG" and not shrink and (header.plain if how.policy == "clipkit" else header.direct):
            try:
                return Decoded(_with_torchvision(data, turn=how.policy == "clipkit"))
            except RuntimeError:
                pass  # stricter than Pillow about some files; Pillow decides
    return _with_pillow(data, kind, how, shrink=shrink)


def decode_image(data: bytes) -> Tensor:
    """Decode one image file by our colour rules.

    Args:
        data: As for ``decode``.

    Returns:
        RGB pixels, uint8 (3, H, W), turned as EXIF says, the first frame of an animation, transparency on white.

    Raises:
        BadSample: As ``decode`` does.
    """
    pixels = decode(data).pixels
    assert isinstance(pixels, Tensor)  # only open_clip's rules and shrinking leave an image with Pillow
    return pixels


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header, as stored: not turned as EXIF says.

    Args:
        data: The file, or for JPEG and PNG its beginning.

    Raises:
        BadSample: If it is of another format, or damaged or cut short before it tells.
    """
    kind = _format(data)
    if kind in ("JPEG", "PNG"):
        header = _jpeg_header(data) if kind == "JPEG" else _png_header(data)
        return header.width, header.height
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            return image.size
    except Exception as error:
        raise BadSample("damaged", f"{kind}: {error}") from error


def image_tensor(image: Image.Image) -> Tensor:
    """Pixels of a Pillow image by the same colour rules.

    Args:
        image: Any mode; of an animation, the frame it stands at.

    Returns:
        RGB pixels, uint8 (3, H, W).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # Pillow's own conversion clips instead of scaling
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        eight = ((grey + 128) // 257).astype(np.uint8)
        return torch.from_numpy(eight).expand(3, *eight.shape).contiguous()
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image.convert("RGBA"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return _tensor(image)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
