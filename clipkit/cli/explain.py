"""``clipkit explain``: two pictures of where an encoder sees a text."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import BinaryIO

from clipkit import api
from clipkit.data.atomic import write_atomically
from clipkit.data.images import BadSample, decode_image
from clipkit.explanation.drawing import draw_map, draw_words
from clipkit.explanation.explain import explain


def explain_image(model: str, image: Path, text: str, *, out: Path) -> list[Path]:
    """Draw the map of the text to ``out``, and that of its words beside it as ``NAME.words.png``.

    Raises:
        ValueError: If the model, the image, the text or ``out`` are wrong.
    """
    if out.suffix.lower() != ".png" or out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: name a file FILE.png in a folder that exists")
    try:
        pixels = decode_image(image.read_bytes())
    except (OSError, BadSample) as error:
        raise ValueError(f"{image}: no image that can be read ({error})") from error
    found = explain(api.load(model), pixels, text)
    pictures = {out: draw_map(found), out.with_suffix(".words.png"): draw_words(found)}
    for path, picture in pictures.items():
        data = io.BytesIO()
        picture.save(data, "PNG")
        write_atomically(path, partial(_write, data.getvalue()))
    return list(pictures)


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)
