"""The retrieval gallery: texts, and the pictures that the encoder finds for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_CELL, _GAP, _WORDS, _LINE = 96, 12, 330, 22
_RIGHT, _OTHER, _INK, _PAPER = (22, 140, 70), (222, 222, 222), (30, 30, 30), (255, 255, 255)


def draw_gallery(rows: Sequence[tuple[str, Sequence[tuple[Image.Image, bool]]]], out: Path, *, title: str) -> None:
    """Draw one row a text: the text, then pictures in order of similarity, right ones framed.

    Args:
        rows: Each text with its pictures and whether each is right.
        out: The PNG to write.
        title: Stands above.
    """
    columns = max(len(pictures) for _, pictures in rows)
    width = _WORDS + columns * (_CELL + _GAP) + 2 * _GAP
    height = 3 * _LINE + len(rows) * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(15)
    pen.text((_GAP, _GAP), title, fill=_INK, font=large)
    pen.text(
        (_GAP, _GAP + _LINE + 4),
        "the five nearest pictures of each text, nearest first; right ones framed green",
        fill=(110, 110, 110),
        font=small,
    )
    for row, (text, pictures) in enumerate(rows):
        top = 3 * _LINE + row * (_CELL + _GAP)
        for line, words in enumerate(_wrapped(text, pen, small)):
            pen.text((_GAP, top + 8 + line * _LINE), words, fill=_INK, font=small)
        for column, (picture, right) in enumerate(pictures):
            left = _WORDS + column * (_CELL + _GAP)
            sheet.paste(
                picture.convert("RGB").resize((_CELL - 12, _CELL - 12), Image.Resampling.LANCZOS), (left + 6, top + 6)
            )
            pen.rectangle(
                (left, top, left + _CELL, top + _CELL), outline=_RIGHT if right else _OTHER, width=4 if right else 1
            )
    sheet.save(out)


def _wrapped(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer, font=font) <= _WORDS - 2 * _GAP:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:4]
