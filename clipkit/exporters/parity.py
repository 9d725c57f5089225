"""Proof that an exported encoder is the one that was trained: the same real inputs through both.

A cosine of raw embeddings proves little, since embeddings of one model all point roughly the same way: 0.999 may be
the distance between a cat and a truck. So the mean over the probes is removed first, and every difference is also given
in units of the median distance between probes. Where that distance is too small, the check says that it cannot tell.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from clipkit.data.images import image_tensor
from clipkit.encoder import Encoder

CONTROLS = 6  # probes that the wrong preprocessing is tried on: the last, so the contact sheets are among them


@dataclass(frozen=True)
class Bounds:
    """What must hold at one precision.

    Args:
        most_difference: Of any component of unit-norm embeddings, given the same tensors; None asks nothing.
        least_cosine: Of centred embeddings, given the same raw images and texts.
        least_spread: Median distance between probes, below which nothing is proven.
        least_agreement: Share of probes with the same nearest neighbour, on trained weights.
    """

    most_difference: float | None
    least_cosine: float
    least_spread: float
    least_agreement: float = 0.98


BOUNDS = {
    "float32": Bounds(1e-5, 0.9999, 1e-3),
    "float16": Bounds(2e-3, 0.999, 2e-2),
    "int8": Bounds(None, 0.98, 2e-2),  # its gate is the agreement
}


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
        details: Versions, counts and ``said``, what the receiver must know; JSON types only.
        least_cosine: Bound of the whole-path check, which the controls are held against.
    """

    format: str
    model: str
    checks: tuple[Check, ...]
    controls: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    least_cosine: float = BOUNDS["float32"].least_cosine

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
        controls = {
            name: {"smallest_cosine": _finite(x), "caught": self.caught(x)} for name, x in self.controls.items()
        }
        main = {"format": self.format, "model": self.model, "held": self.held}
        return main | {"checks": checks, "controls": controls} | self.details

    def write(self, path: Path) -> None:
        """Write strict JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def lines(self) -> list[str]:
        """One line a check and a control, for people."""
        checks = [
            f"{'ok  ' if check.held else 'FAIL'} {check.name}: {check.bound}; {check.figures}"
            + (f"; worst: {check.worst}; {check.reason}" if check.reason else "")
            for check in self.checks
        ]
        controls = [
            f"{'    would have been caught' if self.caught(x) else 'NOTE would NOT have been caught'}: {name}, cosine {x:.7f}"
            for name, x in self.controls.items()
        ]
        return checks + controls + [f"NOTE {line}" for line in self._notes()]

    def _notes(self) -> list[str]:
        said: list[str] = list(self.details.get("said", []))
        shifted: dict[str, float] = self.details.get("deviations", {})
        return said + [f"known to deviate, not held: {name}, centred cosine {x:.4f}" for name, x in shifted.items()]

    def caught(self, cosine: float) -> bool:
        """Whether the whole-path check refuses a centred cosine."""
        return not cosine >= self.least_cosine


class ParityError(ValueError):
    """An export that does not do what the encoder does; nothing was left behind.

    Args:
        report: The whole comparison.
    """

    exit_code: ClassVar[int] = 1  # a failure, and nobody's bad input

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
    bounds: Bounds = BOUNDS["float32"],
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
        bounds: Of the precision; here its ``least_spread``.
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
    reason, bound = "", "same tensors, no bound of its own"
    if most_difference is not None:
        bound = f"same tensors, difference at most {most_difference:g}"
        reason = "" if largest <= most_difference else f"difference {largest:.3g}"
    if least_cosine is not None:
        bound = f"from raw inputs, centred cosine at least {least_cosine:g}"
        reason = "" if smallest >= least_cosine else f"centred cosine {smallest:.6f}"
    if not math.isfinite(largest):
        reason = "not finite"
    if not spread >= bounds.least_spread:
        reason = f"not discriminating: the probes lie {spread:.1e} apart, at least {bounds.least_spread:g} is needed"
    worst = int(difference.argmax() if least_cosine is None else cosine.argmin())
    relative = float((a - b).norm(dim=1).max()) / spread if spread else math.nan
    return Check(name, len(a), largest, smallest, spread, relative, inputs[worst], bound, not reason, reason)


def agreement(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], bounds: Bounds) -> list[Check]:
    """Whether both encoders find the same nearest text of every image (top-1) and image of every text (R@1), given the same tensors.

    Args:
        ours: The encoder's images (N, D) and texts (M, D), unit norm.
        theirs: The export's.
        bounds: ``least_agreement``; neighbours that are equally near within ``most_difference`` count as the same.
    """
    mine, other = ours[0].double() @ ours[1].double().T, theirs[0].double() @ theirs[1].double().T
    checks = []
    for name, a, b in (("top-1", mine, other), ("R@1", mine.T, other.T)):
        short = a.amax(1) - a.gather(1, b.argmax(1, keepdim=True))[:, 0]
        share = float((short <= 2 * (bounds.most_difference or 0)).double().mean())
        held = share >= bounds.least_agreement
        bound = f"same nearest neighbour, share {share:.4f} of {len(a)} probes, at least {bounds.least_agreement:g}"
        cure = (
            ""
            if bounds.most_difference is not None
            else "; weights this small change what is found: take precision=float16"
        )
        reason = "" if held else f"share {share:.3f}{cure}"
        largest = float((a - b).abs().max())
        checks.append(
            Check(name, len(a), largest, None, None, None, f"probe {int(short.argmax())}", bound, held, reason)
        )
    return checks


def controls(encoder: Encoder, images: Sequence[Image.Image], right: Tensor) -> dict[str, float]:
    """What the whole-path check would say of wrong preprocessing: one below its bound would have been caught.

    Args:
        encoder: The encoder.
        images: The probes (N).
        right: Their embeddings (N, D).

    Returns:
        For each mistake, the smallest centred cosine of its embeddings with the right ones.
    """
    centre, right, images = right.mean(0), right[-CONTROLS:], images[-CONTROLS:]
    own = encoder.preprocess
    mistakes = {
        "other interpolation": replace(own, interpolation="bicubic" if own.interpolation == "bilinear" else "bilinear"),
        "other resize mode": replace(own, resize_mode="shortest" if own.resize_mode == "squash" else "squash"),
    }
    wrong = {name: own_way.batch([image_tensor(image) for image in images]) for name, own_way in mistakes.items()}
    wrong["channels swapped"] = encoder.prepare(images).flip(1)
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


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
