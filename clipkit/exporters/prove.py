"""Any format's files against the encoder that they were made from: the same harness for all of them.

Two comparisons: (a) the encoder on identical tensors, (b) the whole path from raw images and texts; each at every batch size
that the files take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.exporters import parity
from clipkit.exporters.beside import refuse_graphs
from clipkit.exporters.candidate import Candidate, Format
from clipkit.exporters.folder import new_folder
from clipkit.exporters.offline import offline
from clipkit.exporters.parity import Bounds, Check, ParityReport
from clipkit.exporters.probes import RANKED, SPELLINGS, Probes, embedded_probes, rule_probes, text_name
from clipkit.towers.model_files import PARITY_FILE

FEW = (
    8  # probes that a batch size other than the largest sees: the first four and the last four, which are the hard ones
)

# how a receiver that has not each of our rules for pictures is told so
RULES = {
    "transparency": "transparent pictures are not laid on white here, as clipkit lays them: a half-transparent probe has centred cosine {:.4f} "
    "with the encoder (a known difference, not held); lay them on white before",
    "orientation": "pictures are not turned as EXIF says here, as clipkit turns them: a probe of orientation 6 has centred cosine {:.4f} "
    "with the encoder (a known difference, not held); turn them before (PIL.ImageOps.exif_transpose)",
    "depth": "pictures of 16 bits are not scaled to 8 here, as clipkit scales them: such a probe has centred cosine {:.4f} with the encoder "
    "(a known difference, not held); scale them before",
    "palette": "pictures with a palette are resized before they are converted here, by nearest neighbour: such a probe has centred cosine "
    '{:.4f} with the encoder (a known difference, not held); convert them before (image.convert("RGB"))',
}


def export_encoder(
    encoder: Encoder,
    format: Format,
    out: str | Path,
    *,
    images: Sequence[Image.Image | Path | str] | None = None,
    texts: Sequence[str] | None = None,
    force: bool = False,
    finish: Callable[[Path, ParityReport], None] | None = None,
) -> ParityReport:
    """Write an encoder's files, proven to give its embeddings to whoever loads them.

    Args:
        encoder: What to export.
        format: Which files.
        out: The folder to make.
        images: Real images to compare on, at least 8; None for drawings of the embedded data set.
        texts: Real texts to compare on, at least 8; None for names of that data set.
        force: Whether a folder that holds files may be replaced.
        finish: Adds to the folder once the proof holds (the card).

    Returns:
        The comparison, also in the folder as ``parity.json``.

    Raises:
        ParityError: If the files' embeddings differ from the encoder's; then there is no folder.
        ValueError: If the folder is taken, the probes are too few, or the format cannot hold the encoder.
    """
    refuse_graphs(encoder, format.name)
    format.refuse(encoder)
    probes = Probes.of(images, texts)
    with new_folder(Path(out), force=force) as folder:
        format.write(encoder, folder)
        report = prove(encoder, format, folder, probes)
        report.require()
        report.write(folder / PARITY_FILE)
        if finish is not None:
            finish(folder, report)
    return report


def prove(encoder: Encoder, format: Format, folder: Path, probes: Probes) -> ParityReport:
    """Load a folder as a stranger would, offline, and compare it with the encoder.

    Args:
        encoder: What the folder should hold.
        format: Which files they are.
        folder: The folder.
        probes: Real inputs.

    Returns:
        The comparison, whether it holds or not.

    Raises:
        ValueError: If the files cannot be loaded.
    """
    with offline(), parity.full_precision(), torch.no_grad():
        candidate = format.load(folder, encoder.device)
        bounds = parity.BOUNDS[candidate.precision]
        ours = encoder.encode_image(probes.images), encoder.encode_text(probes.texts)
        tokens = encoder.tokenize(list(probes.texts))
        names = [text_name(text) for text in probes.texts]
        taken = _taken(encoder, candidate, probes.images)
        shifted = _shifted(probes, candidate, format)
        image = Side("images", ours[0], taken, probes.images, probes.image_names, shifted)
        text = Side("texts", ours[1], tokens, probes.texts, names)
        checks, same_images = _side(image, candidate.image, candidate.raw_image, candidate.batches, bounds)
        more, same_texts = _side(text, candidate.text, candidate.raw_text, candidate.batches, bounds)
        checks += more
        if encoder.info.pretrained is not None:  # random weights rank by chance
            named = [row for row, given in enumerate(probes.texts) if given not in SPELLINGS]
            ours, theirs = (ours[0], ours[1][named]), (same_images, same_texts[named])
            if probes.embedded and bounds.most_difference is None:  # the share is the gate: more than a few are asked
                ours, theirs = _with_more(encoder, candidate, probes, ours, theirs)
            checks += parity.agreement(ours, theirs, bounds)
        if candidate.temperature is not None:
            checks.append(_temperature(encoder, candidate))
        controls = parity.controls(encoder, probes.images, image.ours)
        deviations = _deviations(image, candidate)
        rules = _rules(encoder, candidate, image)
    details = _details(encoder, candidate, probes) | {"deviations": deviations, "rules": rules}
    details["said"] += [RULES[rule].format(x) for rule, x in rules.items() if not x >= bounds.least_cosine]
    return ParityReport(format.name, encoder.info.model, tuple(checks), controls, details, bounds.least_cosine)


def _taken(encoder: Encoder, candidate: Candidate, images: Sequence[Image.Image]) -> Tensor:
    """The encoder's preprocessing of images, as the candidate's tower takes them, on the CPU."""
    pixels = encoder.prepare(images)
    return pixels if candidate.takes == "uint8" else encoder.image.normalise(pixels.to(encoder.device)).float().cpu()


Pair = tuple[Tensor, Tensor]


def _with_more(encoder: Encoder, candidate: Candidate, probes: Probes, ours: Pair, theirs: Pair) -> tuple[Pair, Pair]:
    """Images (N, D) and texts (M, D) of both, and behind them the others of the larger embedded set, on the same tensors."""
    others = [pair for pair in zip(*embedded_probes(RANKED), strict=True) if pair[1] not in probes.texts]
    images, texts = [image for image, _ in others], [text for _, text in others]  # one that stood twice would be a tie
    size = max(candidate.batches)
    mine = encoder.encode_image(images), encoder.encode_text(texts)
    taken, tokens = _taken(encoder, candidate, images), encoder.tokenize(texts)
    other = in_batches(candidate.image, taken, size), in_batches(candidate.text, tokens, size)
    first, second = ((torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in ((ours, mine), (theirs, other)))
    return first, second


def _details(encoder: Encoder, candidate: Candidate, probes: Probes) -> dict[str, Any]:
    counts = {"images": len(probes.images), "flattened": probes.flattened, "texts": len(probes.texts)}
    details: dict[str, Any] = {
        "precision": candidate.precision,
        "batches": list(candidate.batches),
        "probes": counts,
        "versions": {"torch": version("torch")} | candidate.versions,
        "said": list(candidate.said),
    }
    if encoder.info.pretrained is None:
        details["said"].append("the weights are random: agreement of top-1 and R@1 was not asked for")
    return details


def _shifted(probes: Probes, candidate: Candidate, format: Format) -> list[int]:
    found = [i for i, x in enumerate(probes.images) if candidate.shifts(x)]
    if len(probes.images) - len(found) < FEW:
        said = f"{format.name} is known to prepare {len(found)} of {len(probes.images)} probe images otherwise"
        raise ValueError(f"{said}; at least {FEW} others are needed: give square ones")
    return found


class Side:
    """One field's probes.

    Args:
        name: ``images`` or ``texts``.
        ours: The encoder's embeddings (N, D).
        tensors: What its tower takes (N, ...).
        raw: The inputs themselves (N).
        names: What messages call them (N).
        shifted: Rows that the receiver's preprocessing is known to change: no part of the whole-path check.
    """

    def __init__(
        self,
        name: str,
        ours: Tensor,
        tensors: Tensor,
        raw: Sequence[Any],
        names: Sequence[str],
        shifted: Sequence[int] = (),
    ) -> None:
        self.name, self.ours, self.tensors, self.raw, self.names = name, ours, tensors, raw, names
        self.shifted = frozenset(shifted)


def _side(
    side: Side, encode: Any, encode_raw: Any, batches: tuple[int, ...], bounds: Bounds
) -> tuple[list[Check], Tensor]:
    """The checks of one field, and the candidate's embeddings of identical tensors at its largest batch (N, D)."""
    checks, same = [], side.ours
    everyone = list(range(len(side.ours)))
    for size in batches:
        seen = everyone if size == max(batches) else everyone[: FEW // 2] + everyone[-FEW // 2 :]
        reference, names = side.ours[seen], [side.names[i] for i in seen]
        same = in_batches(encode, side.tensors[seen], size)
        what = f"{side.name} in batches of {size}"
        checks.append(parity.compare(what, reference, same, names, bounds, most_difference=bounds.most_difference))
        seen = [i for i in seen if i not in side.shifted]
        reference, names = side.ours[seen], [side.names[i] for i in seen]
        whole = in_batches(encode_raw, [side.raw[i] for i in seen], size)
        what = f"{side.name}, whole path, in batches of {size}"
        checks.append(parity.compare(what, reference, whole, names, bounds, least_cosine=bounds.least_cosine))
    return checks, same


def _deviations(side: Side, candidate: Candidate) -> dict[str, float]:
    """Centred cosine of each probe that the receiver's preprocessing is known to change: said, not held."""
    rows = sorted(side.shifted)
    if not rows:
        return {}
    theirs = in_batches(candidate.raw_image, [side.raw[i] for i in rows], max(candidate.batches))
    centre = side.ours.mean(0)
    cosines = torch.cosine_similarity(side.ours[rows] - centre, theirs - centre)
    return {side.names[i]: float(x) for i, x in zip(rows, cosines, strict=True)}


def _rules(encoder: Encoder, candidate: Candidate, side: Side) -> dict[str, float]:
    """Centred cosine of a picture for each of our rules that a receiver may not have: measured, not held."""
    probes = rule_probes(side.raw)
    images, centre = list(probes.values()), side.ours.mean(0)
    theirs = in_batches(candidate.raw_image, images, max(candidate.batches))
    cosines = torch.cosine_similarity(encoder.encode_image(images) - centre, theirs - centre)
    return dict(zip(probes, cosines.tolist(), strict=True))


@torch.no_grad()
def in_batches(encode: Callable[[Any], Tensor], inputs: Any, size: int) -> Tensor:
    """Embeddings (N, D), float32 on the CPU, of N inputs, exactly ``size`` at a time: the last batch is filled up."""
    parts = []
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        lack = size - len(part)
        if lack:
            last = part[-1:]
            part = torch.cat([part, *[last] * lack]) if isinstance(part, Tensor) else [*part, *list(last) * lack]
        parts.append(encode(part).detach().float().cpu()[: size - lack])
    return torch.cat(parts)


def _temperature(encoder: Encoder, candidate: Candidate) -> Check:
    """Scale and bias of the logits, which no embedding shows."""
    assert candidate.temperature is not None
    scale, bias = candidate.temperature
    ours, theirs = (encoder.log_scale, encoder.logit_bias or 0.0), (scale, bias or 0.0)
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    most = candidate.temperature_bound
    held = difference <= most and (bias is None) == (encoder.logit_bias is None)
    bound = f"log scale and bias, difference at most {most:g}"
    reason = "" if held else f"log scale and bias are {theirs}, not {ours}"
    return Check("temperature", 1, difference, None, None, None, "logit_scale and logit_bias", bound, held, reason)
