"""The real inputs that an export is compared on: the user's, or the embedded data's, and a few that are hard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from clipkit.data.embedded import HELD_OUT_STYLE, concepts, drawings
from clipkit.data.images import image_tensor

COUNT = 16  # embedded probes of each kind
RANKED = 128  # of them where a share is asked for: of 20, a share of 0.98 would be all
FEWEST = 8  # probes, so that a batch of seven is full
# columns, rows and mode of more images: contact sheets of the first few. The last is opaque: what transparency shows is a rule of ours
SHEETS = ((3, 2, "RGB"), (2, 3, "RGB"), (2, 2, "L"), (3, 1, "RGBA"))
CELL = (157, 149)  # odd, so that crops are uneven
ORIENTATION = 0x0112  # EXIF's tag
# for their spelling alone: they name no picture, and no ranking is asked of them
SPELLINGS = (
    "Stop! WOW!!! It's 2 o'clock,\tdon't_go",
    "„Curly“ ‘quotes’ of a ﬁne Cafe\u0301, ＦＵＬＬ　ｗｉｄｔｈ！",
)
HARD_TEXTS = (
    *SPELLINGS,
    *("", "a", "naïve café, 東京の猫, красный велосипед 🚲", "a very long caption, word after word " * 40),
)


@dataclass(frozen=True)
class Probes:
    """Real inputs that both encoders get.

    Args:
        images: Images (N): the user's, and contact sheets of them, of which one is gray and one has an opaque alpha channel.
        image_names: What messages call them (N).
        texts: Texts (M), the user's and ``HARD_TEXTS``.
        flattened: How many images were neither RGB nor gray and were made so by our colour rules first (transparency on
            white, turned as EXIF says): open_clip itself ignores both.
        embedded: Whether they are those of the embedded data set, of which there are more.
    """

    images: tuple[Image.Image, ...]
    image_names: tuple[str, ...]
    texts: tuple[str, ...]
    flattened: int
    embedded: bool = False

    @classmethod
    def of(cls, images: Sequence[Image.Image | Path | str] | None = None, texts: Sequence[str] | None = None) -> Probes:
        """Open the images, and add contact sheets and the hard texts.

        Args:
            images: Real images, or None for drawings of the embedded data set.
            texts: Real texts, or None for names of that data set.

        Raises:
            ValueError: If there are fewer than ``FEWEST`` of either, or an image cannot be read.
        """
        embedded = images is None and texts is None
        if images is None or texts is None:
            drawings, labels = embedded_probes()
            images, texts = drawings if images is None else images, labels if texts is None else texts
        for what, given in (("images", images), ("texts", texts)):
            if len(given) < FEWEST:
                raise ValueError(f"{len(given)} probe {what}; a parity check needs at least {FEWEST} real ones")
        opened, names, flattened = [], [], 0
        for number, given_image in enumerate(images):
            name, image = _open(given_image, number)
            turned = image.getexif().get(ORIENTATION, 1) != 1
            plain = image.mode in ("RGB", "L") and not turned and "transparency" not in image.info
            flattened += not plain
            opened.append(image if plain else to_pil_image(image_tensor(image)))
            names.append(name)
        # a user's images may all have the model's size, or be smooth: a wrong resize would not show
        sheets = [contact_sheet(opened[:6], columns, rows).convert(mode) for columns, rows, mode in SHEETS]
        names += [f"contact sheet of {sheet.width} x {sheet.height}, {sheet.mode}" for sheet in sheets]
        opened += sheets
        return cls(tuple(opened), tuple(names), (*texts, *HARD_TEXTS), flattened, embedded)


def embedded_probes(count: int = COUNT) -> tuple[list[Image.Image], list[str]]:
    """``count`` drawings spread over the concepts, and their labels."""
    pictures = drawings(HELD_OUT_STYLE)
    drawn = [concept for concept in concepts() if concept.hexcode in pictures]
    chosen = drawn[:: len(drawn) // count][:count]
    return [Image.open(io.BytesIO(pictures[concept.hexcode])).convert("RGB") for concept in chosen], [
        c.label for c in chosen
    ]


def contact_sheet(images: Sequence[Image.Image], columns: int, rows: int) -> Image.Image:
    """The first ``columns * rows`` images side by side: real content with fine detail, and never square."""
    sheet = Image.new("RGB", (columns * CELL[0], rows * CELL[1]))
    for number, image in enumerate(images[: columns * rows]):
        row, column = divmod(number, columns)
        sheet.paste(image.resize(CELL), (column * CELL[0], row * CELL[1]))
    return sheet


def rule_probes(images: Sequence[Image.Image]) -> dict[str, Image.Image]:
    """A half-transparent picture, one that EXIF turns, one of 16 bits and one with a palette, by the rule of ours that each shows.

    They are square, so that no crop differs.


    Args:
        images: Real images, of which the first four are in each.
    """
    plain = contact_sheet(images[:4], 2, 2).resize((2 * CELL[0], 2 * CELL[0]))
    clear, stored = plain.copy(), io.BytesIO()
    clear.putalpha(128)
    orientation = Image.Exif()
    orientation[ORIENTATION] = 6
    plain.save(stored, "PNG", exif=orientation)
    turned = Image.open(stored)  # as a receiver gets it: out of a file
    turned.load()
    deep = Image.fromarray(np.asarray(plain.convert("L"), dtype=np.uint16) * 257)
    return {"transparency": clear, "orientation": turned, "depth": deep, "palette": plain.quantize(64)}


def text_name(text: str) -> str:
    """A text as messages call it.

    >>> text_name("a red bicycle")
    "text 'a red bicycle'"
    """
    return f"text {text if len(text) <= 60 else text[:57] + '...'!r}"


def _open(image: Image.Image | Path | str, number: int) -> tuple[str, Image.Image]:
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or f"image {number}", image
    try:
        opened = Image.open(image)
        opened.load()
    except OSError as error:
        raise ValueError(f"{image}: unreadable probe image ({error}); give another") from error
    return str(image), opened
