"""Heat maps as pictures: the image beside it, and a legend that says what the colours stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from clipkit.data.visible import visible
from clipkit.explanation.explain import Explanation
from clipkit.towers.places import ATTENTION, GRADCAM, INTEGRATED

_PAPER, _INK, _SOFT = (255, 255, 255), (28, 28, 26), (98, 98, 92)
_GAP, _LARGE, _SMALL = 16, 384, 200
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Viridis, dark for low: even in lightness, and told apart by colour-blind eyes and in grey."""
_SAYS = {
    ATTENTION: "how much each patch speaks for the text (gradient-weighted attention)",
    GRADCAM: "what each place adds to the similarity (HiResCAM: gradient x activation)",
    INTEGRATED: "what each cell adds to the similarity (integrated gradients)",
}


def draw_map(found: Explanation) -> Image.Image:
    """The image, and beside it the map of the whole text."""
    width, height = _fit(found.image, _LARGE)
    sheet, pen = _sheet(2 * width + 3 * _GAP, height + 150)
    _title(pen, found.text, f"cosine of the whole image and the whole text: {found.cosine:.3f}", sheet.width)
    low, high = _range([found.whole])
    sheet.paste(found.image.resize((width, height), Image.Resampling.LANCZOS), (_GAP, 72))
    sheet.paste(overlay(found.image, found.whole, low, high, (width, height)), (2 * _GAP + width, 72))
    _legend(sheet, pen, low, high, _says(found), top=height + 90)
    return sheet


def draw_words(found: Explanation) -> Image.Image:
    """The image, and one map a word, all in the same colours."""
    width, height = _fit(found.image, _SMALL)
    cells = len(found.words) + 1
    columns = min(cells, 4)
    rows = -(-cells // columns)
    sheet, pen = _sheet(max(columns * (width + _GAP) + _GAP, 480), rows * (height + 52) + 150)
    note = f"; {found.left_out} further words are left out" if found.left_out else ""
    _title(pen, found.text, f"one map a word, each word embedded by itself{note}", sheet.width)
    low, high = _range(list(found.maps))
    labels = ["the image", *(f"{word}  {cosine:.3f}" for word, cosine in zip(found.words, found.cosines, strict=True))]
    for cell in range(cells):
        left, top = _GAP + cell % columns * (width + _GAP), 72 + cell // columns * (height + 52)
        picture = (
            found.image.resize((width, height), Image.Resampling.LANCZOS)
            if cell == 0
            else overlay(found.image, found.maps[cell - 1], low, high, (width, height))
        )
        sheet.paste(picture, (left, top))
        _text(pen, (left, top + height + 6), labels[cell], 15, _INK, width)
    _legend(sheet, pen, low, high, _says(found), top=rows * (height + 52) + 84)
    return sheet


def overlay(image: Image.Image, relevance: Tensor, low: float, high: float, size: tuple[int, int]) -> Image.Image:
    """The image in grey under the map in colours.

    Args:
        image: The image.
        relevance: The map (H, W).
        low: Value of the darkest colour.
        high: Value of the brightest.
        size: Width and height of the picture.
    """
    shares = ((relevance - low) / ((high - low) or 1)).clamp(0, 1)
    smooth = Image.fromarray(shares.float().numpy(), mode="F").resize(size, Image.Resampling.BICUBIC)
    colours = colour(torch.from_numpy(np.array(smooth)).clamp(0, 1))
    grey = image.convert("L").convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return Image.blend(grey, Image.fromarray(colours.numpy()), 0.6)


def colour(shares: Tensor) -> Tensor:
    """Values in [0, 1] (H, W) as colours, uint8 (H, W, 3).

    >>> colour(torch.tensor([[0.0, 1.0]])).tolist()
    [[[68, 1, 84], [253, 231, 37]]]
    """
    stops = torch.tensor(_COLOURS, dtype=torch.float32)
    at = shares * (len(stops) - 1)
    below = at.floor().long().clamp(max=len(stops) - 2)
    part = (at - below)[..., None]
    return (stops[below] * (1 - part) + stops[below + 1] * part).round().to(torch.uint8)


def _says(found: Explanation) -> str:
    height, width = found.whole.shape
    return f"{_SAYS[found.method]}, {height} x {width}"


def _range(maps: Sequence[Tensor]) -> tuple[float, float]:
    return min(float(one.min()) for one in maps), max(float(one.max()) for one in maps)


def _fit(image: Image.Image, side: int) -> tuple[int, int]:
    scale = side / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), _PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _title(pen: ImageDraw.ImageDraw, text: str, below: str, width: int) -> None:
    _text(pen, (_GAP, 14), text, 20, _INK, width - 2 * _GAP)
    _text(pen, (_GAP, 42), below, 14, _SOFT, width - 2 * _GAP)


def _legend(sheet: Image.Image, pen: ImageDraw.ImageDraw, low: float, high: float, says: str, *, top: int) -> None:
    width = min(240, sheet.width - 2 * _GAP - 130)
    bar = colour(torch.linspace(0, 1, width)[None].expand(12, -1))
    ends = [f"{value:.3f}" if abs(value) >= 0.001 or not value else f"{value:.1e}" for value in (low, high)]
    left = _GAP + int(pen.textlength(ends[0], font=ImageFont.load_default(14))) + 8
    _text(pen, (_GAP, top - 3), ends[0], 14, _INK, 120)
    sheet.paste(Image.fromarray(bar.numpy()), (left, top))
    _text(pen, (left + width + 8, top - 3), ends[1], 14, _INK, 120)
    _text(pen, (_GAP, top + 22), says, 13, _SOFT, sheet.width - 2 * _GAP)


def _text(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: tuple[int, int, int], width: int
) -> None:
    """A line, cut where it would leave its room; what hides or reorders its neighbours is spelled out."""
    font = ImageFont.load_default(size)
    words = visible(text, 400)
    while len(words) > 1 and pen.textlength(words, font=font) > width:
        words = words[:-2].rstrip() + "…"
    pen.text(at, words, fill=ink, font=font)
