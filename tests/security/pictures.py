"""Hostile pictures: bombs of pixels, of text and of scans, and formats whose decoders nobody asked for."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from unittest import mock

from PIL import Image, PngImagePlugin

from clipkit.data.images import BadSample, decode, decode_image, image_size
from tests.security.lab import Exploit, Lab, fires, raises

SIDE = 13_000
EXOTIC = (
    "EPS",
    "ICO",
    "TIFF",
    "PPM",
    "TGA",
    "PCX",
    "SGI",
    "DDS",
    "JPEG2000",
    "IM",
    "ICNS",
    "MSP",
    "XBM",
    "AVIF",
    "FITS",
    "PSD",
)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *, more: bytes = b"", bits: int = 1, colour: int = 0) -> bytes:
    """A PNG of compressed rows."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """13,000 x 13,000 pixels of one bit in 20 kB."""
    packer, row = zlib.compressobj(9), bytes(1 + (SIDE + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(SIDE)) + packer.flush()
    return png(SIDE, SIDE, rows)


def open_plainly(data: bytes) -> Image.Image:
    """Pillow, its warning of large pictures passed over as warnings are."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
    return image


def refuse(data: bytes, cause: str) -> None:
    """Every way in which a picture is read must refuse it."""
    for read in (decode_image, decode):
        assert raises(BadSample, lambda read=read: read(data)).startswith(cause)


def bomb_here(lab: Lab) -> None:
    """Refused by its header."""
    data = bomb()
    assert len(data) < 40_000
    lab.harmed(lab.grows(50, lambda: refuse(data, "too_large")))
    lied = data.replace(
        struct.pack(">II", SIDE, SIDE), struct.pack(">II", 100, 100)
    )  # the header says less than there is
    lab.harmed(lab.grows(50, lambda: fires(lambda: decode_image(lied))))
    shard = lab.tar(
        "bomb.tar", {f"{i:05d}.{kind}": data if kind == "png" else b"a" for i in range(16) for kind in ("png", "txt")}
    )
    one = {"train": {"x": {"shards": str(shard)}}, "batch_size": 8, "workers": 0}
    lab.refused("fit", lab.config(data=one), f"run={lab.folder / 'r'}")
    lab.refused("embed", lab.world.model, shard, "--out", lab.folder / "e", words="too_large")
    lab.refused("explain", lab.world.model, picture(lab, data), "words", "--out", lab.folder / "x.png")
    found = lab.folder / "page.html"
    lab.passed("data", "preview", shard, "--out", found)
    assert "too_large" in found.read_text()


def picture(lab: Lab, data: bytes) -> Path:
    """A file of it."""
    path = lab.folder / "picture.jpg"
    path.write_bytes(data)
    return path


def text_bomb(kind: bytes, count: int = 60) -> bytes:
    """A small PNG with many chunks of text, each a mebibyte of spaces in a kilobyte; 16 bits a channel, so that Pillow reads it."""
    packed = zlib.compress(bytes((1 << 20) - 64), 9)
    head = {b"zTXt": b"\0\0", b"iTXt": b"\0\1\0\0\0"}
    if kind == b"iCCP":
        more = chunk(kind, b"k\0\0" + zlib.compress(bytes(64 << 20), 9))
    else:
        more = b"".join(chunk(kind, b"k%d" % number + head[kind] + packed) for number in range(count))
    return png(4, 1, zlib.compress(bytes(1 + 16)), more=more, bits=16, colour=4)


def unlimited_text(lab: Lab) -> None:
    """Pillow before it had a limit."""
    with mock.patch.object(PngImagePlugin, "MAX_TEXT_MEMORY", 1 << 40):
        image = Image.open(io.BytesIO(text_bomb(b"zTXt", 100)))
        image.load()
        held = sum(len(text) for text in image.text.values())  # type: ignore[attr-defined]
        lab.harmed(held > 50 << 20)


def text_here(lab: Lab) -> None:
    """Refused, or read without its text."""
    for kind in (b"zTXt", b"iTXt", b"iCCP"):
        data = text_bomb(kind, 100)
        lab.harmed(lab.grows(50, lambda data=data: fires(lambda: decode_image(data))))
        lab.harmed(lab.grows(50, lambda data=data: fires(lambda: image_size(data))))


def exotic(kind: str) -> bytes | None:
    """A picture of a format, as Pillow writes it; None where this Pillow cannot."""
    if kind == "FITS":
        cards = ("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2")
        cards += ("NAXIS1  =                    8", "NAXIS2  =                    8", "END")
        return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)
    if kind == "PSD":
        return b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(12) + b"\0\0" + bytes(192)
    file = io.BytesIO()
    try:
        image = Image.new("1" if kind in ("MSP", "XBM") else "RGB", (32, 32))
        image.save(file, kind)
    except (OSError, KeyError, ValueError):
        return None
    return file.getvalue()


def exotic_plainly(lab: Lab) -> None:
    """Pillow takes the format from the bytes, whatever the name says."""
    opened = {Image.open(io.BytesIO(data)).format for kind in EXOTIC if (data := exotic(kind)) is not None}
    lab.harmed(len(opened - {"JPEG", "PNG", "WEBP", "GIF", "BMP"}) >= 10)


def exotic_here(lab: Lab) -> None:
    """Only five formats have decoders here, named to Pillow one by one."""
    asked = []
    real = Image.open

    def watched(file: object, *args: object, **options: object) -> Image.Image:
        asked.append(options.get("formats"))
        return real(file, *args, **options)

    with mock.patch.object(Image, "open", watched):
        for kind in EXOTIC:
            if (data := exotic(kind)) is not None:
                refuse(data, "format")
                raises(BadSample, lambda data=data: image_size(data))
                for magic in (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"):
                    fires(lambda magic=magic, data=data: decode_image(magic + data))
        lab.refused("explain", lab.world.model, picture(lab, exotic("TIFF")), "x", "--out", lab.folder / "x.png")
        lab.refused("search", lab.folder, "--image", picture(lab, exotic("TIFF")), "--model", lab.world.model)
    lab.harmed(any(not formats or set(formats) - {"JPEG", "PNG", "WEBP", "GIF", "BMP"} for formats in asked))


def scans(count: int = 3000) -> bytes:
    """A progressive JPEG of 2,000 x 2,000 pixels in which one scan stands again and again."""
    file = io.BytesIO()
    Image.new("L", (2000, 2000), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + (data[last : data.rindex(b"\xff\xd9")]) * count + b"\xff\xd9"


def scans_plainly(lab: Lab) -> None:
    """libjpeg goes through each scan."""
    import time

    started = time.monotonic()
    fires(lambda: open_plainly(scans(40)))
    lab.harmed((time.monotonic() - started) / 40 * 3000 > 5)


def scans_here(lab: Lab) -> None:
    """More scans than any encoder makes are refused before the first."""
    refuse(scans(), "too_large")


EXPLOITS = (
    Exploit("13,000 x 13,000 pixels", lambda lab: lab.harmed(lab.grows(100, lambda: open_plainly(bomb()))), bomb_here),
    Exploit("text in pictures", unlimited_text, text_here),
    Exploit("exotic formats", exotic_plainly, exotic_here),
    Exploit("scans of a JPEG", scans_plainly, scans_here),
)
