"""Pictures small enough for a page: decoded by our own rules, encoded anew from their pixels, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from clipkit.data.images import decode_image
from clipkit.evaluation.samples import ImageFile


class Sprite(NamedTuple):
    """Many thumbnails in one picture, row by row."""

    uri: str
    side: int
    columns: int


def picture(image: ImageFile) -> Image.Image:
    """The image of a sample.

    Raises:
        BadSample: If it cannot be decoded.
        OSError: If it cannot be read.
    """
    return Image.fromarray(decode_image(image.read()).permute(1, 2, 0).numpy())


def thumbnail(image: ImageFile, side: int) -> str:
    """The image as a data URI, its longer side at most ``side`` pixels."""
    small = picture(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(small)


def sprite(images: Sequence[ImageFile], side: int) -> Sprite:
    """Square thumbnails of all images in one picture, which costs one header instead of hundreds."""
    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, max(rows, 1) * side), (255, 255, 255))
    for number, image in enumerate(images):
        small = picture(image)
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        left, top = number % columns * side, number // columns * side
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    return Sprite(data_uri(sheet), side, columns)


def data_uri(image: Image.Image) -> str:
    """The pixels as WebP in a data URI."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
