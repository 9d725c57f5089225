"""Take what tells of camera, place and author out of an image file, without touching its pixels.

The orientation stays, alone in a new EXIF block: without it the picture would lie on its side.
"""

from __future__ import annotations

import re
import struct
import zlib

_PRIVATE_PNG = {b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME"}
_PRIVATE_WEBP = {b"EXIF", b"XMP "}
_KEPT_APP = {0xE0, 0xE2, 0xEE}  # JFIF, colour profile, Adobe's colour transform: they decide how pixels look
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # in the coded data: neither a stuffed byte nor a restart
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def strip_metadata(data: bytes, kind: str, orientation: int = 1) -> bytes:
    """Remove EXIF, XMP, IPTC, comments and whatever follows the image.

    Args:
        data: The file.
        kind: ``jpg``, ``png`` or ``webp``; others hold no EXIF and come back as they are.
        orientation: EXIF's, 1 to 8; kept where it is not 1.

    Raises:
        ValueError: If the file is not built as its format says.
    """
    exif = _exif(orientation) if 2 <= orientation <= 8 else b""
    try:
        if kind == "jpg":
            return _jpeg(data, exif)
        if kind == "png":
            return _png(data, exif)
        return _webp(data, exif) if kind == "webp" else data
    except (IndexError, struct.error) as error:
        raise ValueError(f"breaks off ({error})") from error


def _exif(orientation: int) -> bytes:
    """A TIFF header and one directory of one entry: tag 0x112, a short."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def _jpeg(data: bytes, exif: bytes) -> bytes:
    kept = [b"\xff\xd8"]
    if exif:
        kept.append(b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif)
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError(f"no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker == 0xD9:
            return b"".join([*kept, b"\xff\xd9"])
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xDA:  # the coded data up to the next marker belong to the scan
            found = _MARKER.search(data, end)
            if found is None:  # no end of image: decoders take it, so do we
                return b"".join([*kept, data[at:]])
            end = found.start()
        if marker in _KEPT_APP or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[at:end])
        at = end


def _png(data: bytes, exif: bytes) -> bytes:
    kept, at = [_PNG_HEAD], len(_PNG_HEAD)
    while True:
        size, name = struct.unpack_from(">I4s", data, at)
        if name not in _PRIVATE_PNG:
            kept.append(data[at : at + 12 + size])
        if name == b"IHDR" and exif:
            block = b"eXIf" + exif
            kept.append(struct.pack(">I", len(exif)) + block + struct.pack(">I", zlib.crc32(block)))
        at += 12 + size
        if name == b"IEND":
            return b"".join(kept)


def _webp(data: bytes, exif: bytes) -> bytes:
    end = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    kept, at, extended = [], 12, False
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        chunk = data[at : at + 8 + size + size % 2]
        if name == b"VP8X":  # its flags say which chunks follow
            extended = True
            flags = chunk[8] & ~0x0C | (0x08 if exif else 0)
            chunk = chunk[:8] + bytes([flags]) + chunk[9:]
        if name not in _PRIVATE_WEBP:
            kept.append(chunk)
        at += 8 + size + size % 2
    if exif and extended:
        kept.append(b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2))
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
