"""Proof that an exported encoder is the one that was trained: the same real inputs through both.

A cosine of raw embeddings proves little, since embeddings of one model all point roughly the same way: 0.999 may be
the distance between a cat and a truck. So the mean over the probes is removed first, and every difference is also given
in units of the median distance between probes. Where that distance is too small, the check says that it cannot tell.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchvision.transforms.functional import to_pil_image

from clipkit.data.images import decode_image, image_tensor
from clipkit.encoder import Encoder

BATCHES = (1, 2, 7)
MOST_DIFFERENCE = 1e-5  # of any component of unit-norm embeddings, given the same tensors
LEAST_COSINE = 0.9999  # of centred embeddings, given the same raw images and texts
LEAST_SPREAD = 100 * MOST_DIFFERENCE  # median distance between probes, below which nothing is proven
FEWEST = 8  # probes, so that a batch of seven is full
SHEETS = ((3, 2), (2, 3))  # columns and rows of two more images: contact sheets of the first six
CELL = (157, 149)  # odd, so that crops are uneven
HARD_TEXTS = ("", "a", "naïve café, 東京の猫, красный велосипед 🚲", "a very long caption, word after word " * 40)


@dataclass(frozen=True)
class Probes:
    """Real inputs that both encoders get.

    Args:
        images: RGB images (N): the user's, and two contact sheets of them.
        image_names: What messages call them (N).
        texts: Texts (M), the user's and ``HARD_TEXTS``.
        flattened: How many images were no plain RGB and were made so by our colour rules first (transparency on
            white, turned as EXIF says): open_clip itself ignores both.
    """

    images: tuple[Image.Image, ...]
    image_names: tuple[str, ...]
    texts: tuple[str, ...]
    flattened: int

    @classmethod
    def of(cls, images: Sequence[Image.Image | Path | str] | None = None, texts: Sequence[str] | None = None) -> Probes:
        """Open the images, and add contact sheets and the hard texts.

        Args:
            images: Real images, or None for drawings of the embedded data set.
            texts: Real texts, or None for names of that data set.

        Raises:
            ValueError: If there are fewer than ``FEWEST`` of either, or an image cannot be read.
        """
        if images is None or texts is None:
            drawings, labels = embedded_probes()
            images, texts = drawings if images is None else images, labels if texts is None else texts
        for what, given in (("images", images), ("texts", texts)):
            if len(given) < FEWEST:
                raise ValueError(f"{len(given)} probe {what}; a parity check needs at least {FEWEST} real ones")
        opened, names, flattened = [], [], 0
        for number, given_image in enumerate(images):
            name, image = _open(given_image, number)
            plain = image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1
            flattened += not plain
            opened.append(image if plain else to_pil_image(image_tensor(image)))
            names.append(name)
        # a user's images may all have the model's size, or be smooth: a wrong resize would not show
        sheets = [contact_sheet(opened[:6], columns, rows) for columns, rows in SHEETS]
        names += [f"contact sheet of {sheet.width} x {sheet.height}" for sheet in sheets]
        opened += sheets
        return cls(tuple(opened), tuple(names), (*texts, *HARD_TEXTS), flattened)


@dataclass(frozen=True)
class Check:
    """One comparison of two lots of embeddings, or of other numbers (then cosine, spread and ratio are None).

    Args:
        name: What was compared.
        inputs: How many probes.
        largest_difference: Largest absolute difference of any component of the unit-norm embeddings.
        smallest_cosine: Smallest cosine of matching embeddings after the reference's mean was removed from both.
        spread: Median distance between the reference's embeddings of different probes.
        relative_difference: Largest distance between matching embeddings, in units of ``spread``.
        worst: The probe that differs most.
        bound: What had to hold.
        held: Whether it did.
        reason: Why not; empty where it held.
    """

    name: str
    inputs: int
    largest_difference: float
    smallest_cosine: float | None
    spread: float | None
    relative_difference: float | None
    worst: str
    bound: str
    held: bool
    reason: str = ""

    @property
    def figures(self) -> str:
        """The figures for people."""
        said = f"difference {self.largest_difference:.1e}"
        if self.relative_difference is not None:
            said += f" ({self.relative_difference:.1e} of the distance between probes)"
        return said if self.smallest_cosine is None else f"{said}, centred cosine {self.smallest_cosine:.7f}"


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of one export.

    Args:
        format: What was exported.
        model: Which encoder.
        checks: The comparisons.
        controls: What the whole-path check says of wrong preprocessing, as ``controls`` returns it.
        details: Versions and counts, JSON types only.
    """

    format: str
    model: str
    checks: tuple[Check, ...]
    controls: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether every bound held."""
        return all(check.held for check in self.checks)

    def require(self) -> None:
        """Pass only if every bound held.

        Raises:
            ParityError: With the worst inputs of those that did not.
        """
        if not self.held:
            raise ParityError(self)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``parity.json`` holds; a number that is none becomes None."""
        checks = [{key: _finite(value) for key, value in asdict(check).items()} for check in self.checks]
        controls = {name: {"smallest_cosine": _finite(x), "caught": caught(x)} for name, x in self.controls.items()}
        main = {"format": self.format, "model": self.model, "held": self.held}
        return main | {"checks": checks, "controls": controls} | self.details

    def write(self, path: Path) -> None:
        """Write strict JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def table(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """One line a check and a control, for people."""
        checks = [
            f"{'ok  ' if check.held else 'FAIL'} {check.name}: {check.bound}; {check.figures}"
            + (f"; worst: {check.worst}; {check.reason}" if check.reason else "")
            for check in self.checks
        ]
        controls = [
            f"{'    would have been caught' if caught(x) else 'NOTE would NOT have been caught'}: {name}, cosine {x:.7f}"
            for name, x in self.controls.items()
        ]
        return checks + controls


class ParityError(ValueError):
    """An export that does not do what the encoder does; nothing was left behind.

    Args:
        report: The whole comparison.
    """

    def __init__(self, report: ParityReport) -> None:
        failed = [line for check, line in zip(report.checks, report.lines(), strict=False) if not check.held]
        said = "\n  ".join(failed)
        super().__init__(f"the {report.format} export of {report.model} differs from the encoder:\n  {said}")
        self.report = report


def compare(
    name: str,
    reference: Tensor,
    candidate: Tensor,
    inputs: Sequence[str],
    *,
    most_difference: float | None = None,
    least_cosine: float | None = None,
) -> Check:
    """Compare the embeddings of the same inputs.

    Args:
        name: What is compared.
        reference: The encoder's, unit norm (N, D).
        candidate: The export's, unit norm (N, D).
        inputs: Names of the probes (N).
        most_difference: Bound on the largest absolute difference, or None.
        least_cosine: Bound on the smallest centred cosine, or None.

    Returns:
        The figures, and whether the bound held; NaN never holds.
    """
    a, b = reference.double().cpu(), candidate.double().cpu()
    assert a.shape == b.shape, f"{name}: {tuple(a.shape)} against {tuple(b.shape)}"
    difference = (a - b).abs().amax(1)
    cosine = cosine_similarity(a - a.mean(0), b - a.mean(0), dim=1)
    spread = float(torch.pdist(a).median())
    largest, smallest = float(difference.max()), float(cosine.min())
    reason = bound = ""
    if most_difference is not None:
        bound = f"same tensors, difference at most {most_difference:g}"
        reason = "" if largest <= most_difference else f"difference {largest:.3g}"
    if least_cosine is not None:
        bound = f"from raw inputs, centred cosine at least {least_cosine:g}"
        reason = "" if smallest >= least_cosine else f"centred cosine {smallest:.6f}"
    if not spread >= LEAST_SPREAD:
        reason = f"not discriminating: the probes lie {spread:.1e} apart, at least {LEAST_SPREAD:g} is needed"
    worst = int(difference.argmax() if least_cosine is None else cosine.argmin())
    relative = float((a - b).norm(dim=1).max()) / spread if spread else math.nan
    return Check(name, len(a), largest, smallest, spread, relative, inputs[worst], bound, not reason, reason)


@torch.no_grad()
def in_batches(encode: Callable[[Tensor], Tensor], inputs: Tensor, size: int) -> Tensor:
    """Embeddings (N, D) of inputs (N, ...), ``size`` at a time."""
    return torch.cat([encode(part) for part in torch.split(inputs, size)])


def caught(cosine: float) -> bool:
    """Whether the whole-path check refuses a centred cosine."""
    return not cosine >= LEAST_COSINE


def controls(encoder: Encoder, images: Sequence[Image.Image]) -> dict[str, float]:
    """What the whole-path check would say of wrong preprocessing: one below its bound would have been caught.

    Args:
        encoder: The encoder.
        images: The probes (N).

    Returns:
        For each mistake, the smallest centred cosine of its embeddings with the right ones.
    """
    right = encoder.encode_image(images)
    own = encoder.preprocess
    mistakes = {
        "other interpolation": replace(own, interpolation="bicubic" if own.interpolation == "bilinear" else "bilinear"),
        "other resize mode": replace(own, resize_mode="shortest" if own.resize_mode == "squash" else "squash"),
    }
    wrong = {name: own_way.batch([image_tensor(image) for image in images]) for name, own_way in mistakes.items()}
    wrong["channels swapped"] = encoder.prepare(images).flip(1)
    centre = right.mean(0)
    found = {name: encoder.encode_image(list(pixels)) for name, pixels in wrong.items()}
    return {name: float(cosine_similarity(right - centre, x - centre).min()) for name, x in found.items()}


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32, whose 10 bits would hide differences far above the bound."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision = conv.fp32_precision = "ieee"
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def embedded_probes(count: int = 16) -> tuple[list[Image.Image], list[str]]:
    """Drawings and names of the embedded data set, spread over its concepts."""
    from clipkit.data.embedded import HELD_OUT_STYLE, concepts, drawings

    drawn = drawings(HELD_OUT_STYLE)
    known = [concept for concept in concepts() if concept.hexcode in drawn]
    chosen = known[:: max(1, len(known) // count)][:count]
    return [to_pil_image(decode_image(drawn[each.hexcode])) for each in chosen], [each.label for each in chosen]


def contact_sheet(images: Sequence[Image.Image], columns: int, rows: int) -> Image.Image:
    """The first ``columns * rows`` images side by side: real content with fine detail, and never square."""
    sheet = Image.new("RGB", (columns * CELL[0], rows * CELL[1]))
    for number, image in enumerate(images[: columns * rows]):
        row, column = divmod(number, columns)
        sheet.paste(image.resize(CELL), (column * CELL[0], row * CELL[1]))
    return sheet


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


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
