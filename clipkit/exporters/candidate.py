"""What a stranger loads from exported files, and what a format must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from clipkit.encoder import Encoder

Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class Candidate:
    """An encoder as its receiver has it: loaded from the files alone, with the receiver's own preprocessing and tokenizer.

    Every function takes a whole batch of one of ``batches`` and returns unit-norm embeddings (B, D); the harness cuts the batches.

    Args:
        image: Images as the tower takes them, on the CPU: floats (B, 3, H, W) normalised by the encoder, or uint8 of the same shape
            where ``takes`` says so.
        text: Tokens int64 (B, context length), on the CPU.
        raw_image: Opened images of any size and mode (RGB, L, RGBA).
        raw_text: Texts.
        batches: Sizes of a batch that the files take; a static artefact has its own alone, and the last batch is filled up by
            repeating its last input.
        precision: Of the arithmetic or the weights: it chooses the bounds.
        takes: ``float`` or ``uint8``, what ``image`` takes.
        temperature: Logarithm of the inverse temperature and the bias (None: no bias), or None where the files hold neither.
        temperature_bound: Largest difference of those two.
        versions: Of the libraries that loaded the files.
        shifts: Whether the receiver's own preprocessing is known to deviate on an image, for a reason that ``said`` gives: such a
            probe is measured apart and not held to the bound.
        said: What the receiver must know; stands in the report and in the card.
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    raw_image: Callable[[Sequence[Image.Image]], Tensor]
    raw_text: Callable[[Sequence[str]], Tensor]
    batches: tuple[int, ...] = (1, 2, 7)
    precision: Precision = "float32"
    takes: Literal["float", "uint8"] = "float"
    temperature: tuple[float, float | None] | None = None
    temperature_bound: float = 1e-5
    versions: dict[str, str] = field(default_factory=dict)
    shifts: Callable[[Image.Image], bool] = lambda image: False
    said: tuple[str, ...] = ()


class Format(Protocol):
    """A kind of files. One dataclass a file in ``clipkit/exporters/``, entered in ``formats.py``; its fields are its options."""

    name: ClassVar[str]
    """As the command line takes it."""

    @property
    def usage(self) -> str:
        """How a receiver loads the folder: a few lines of Python for the card."""

    def refuse(self, encoder: Encoder) -> None:
        """Raise ``ValueError`` with the reason where the format cannot hold the encoder."""

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write the files into an empty folder, without any proof."""

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Load the files as a stranger would: nothing of the encoder is at hand, and no call leaves the machine."""
