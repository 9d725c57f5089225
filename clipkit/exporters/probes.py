"""The pictures and captions that an export is compared on when the user gives none: the embedded data's held-out style."""

from __future__ import annotations

import io

from PIL import Image

from clipkit.data.embedded import HELD_OUT_STYLE, concepts, drawings

COUNT = 16


def embedded_probes() -> tuple[list[Image.Image], list[str]]:
    """``COUNT`` drawings spread over the concepts, and their labels."""
    pictures = drawings(HELD_OUT_STYLE)
    drawn = [concept for concept in concepts() if concept.hexcode in pictures]
    chosen = drawn[:: len(drawn) // COUNT][:COUNT]
    return [Image.open(io.BytesIO(pictures[concept.hexcode])).convert("RGB") for concept in chosen], [
        c.label for c in chosen
    ]
