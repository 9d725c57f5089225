"""Do exported files give the encoder's embeddings, and does the check refuse those that do not?

``failed``: exports that should hold and do not, or that should be refused and are not: each model of ``export_models`` in each format, through
the exporter itself, whose proof loads the files as a stranger would. transformers has no class for a ResNet, a roberta tower and a
ConvNet: there a clean refusal by name is asked for.

``controls_caught``: the share of wrong folders that the same proof refuses, of five a format: the other activation, bilinear for
bicubic, ImageNet's mean and deviation, a wrong end-of-text number, exchanged colour channels. Each is the right
encoder with that one fault, written by the format's own code and held against the encoder without it.

``zero_shot_difference``: a trained demo model through each fp32 artefact against its checkpoint: the largest difference of top-1 and top-5
accuracy on drawings of a style that no training picture has, by ``clipkit.evaluate`` on the loaded files.

``--quick``: two models for ``failed`` and step 50 of ``demo --quick``; the smaller weights are those of 600 steps of the demo, as after the
100 of ``demo --quick`` there is no ranking yet that eight bits keep. The same bounds.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import figure, finish, quick
from export_models import MODELS, build, small_vit

import clipkit
from clipkit.encoder import Encoder
from clipkit.exporters.formats import make_format
from clipkit.exporters.probes import Probes
from clipkit.exporters.prove import prove

FORMATS = ("open_clip", "onnx", "torch_export", "transformers")
REFUSED = {("rn50", "transformers"), ("roberta", "transformers"), ("convnext", "transformers")}
QUICK = ("vit quick_gelu", "siglip")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TASK = "embedded:style_transfer"


def exported(encoder: Encoder, name: str, out: Path, **options: str) -> str:
    """Export; why not, or empty."""
    try:
        clipkit.export(encoder, name, out, options=options)
    except ValueError as error:
        return str(error)
    return ""


def failures(names: tuple[str, ...], place: Path) -> list[str]:
    """What did not end as it should."""
    found = []
    for name in names:
        folder = place / name.replace(" ", "_")
        (folder / "source").mkdir(parents=True)
        encoder = build(name, folder / "source")
        for kind in FORMATS:
            said = exported(encoder, kind, folder / kind)
            refused = said.startswith("the format transformers has no class for")
            right = refused and not (folder / kind).exists() if (name, kind) in REFUSED else not said
            print(
                f"{'ok  ' if right else 'FAIL'} {name}, {kind}: {said.splitlines()[0] if said else 'held'}", flush=True
            )
            if not right:
                found.append(f"{name}, {kind}")
        if name.startswith("vit"):
            found += packed(encoder, name, ("float16",), folder)
    return found


def packed(encoder: Encoder, name: str, precisions: tuple[str, ...], folder: Path) -> list[str]:
    """ONNX exports of smaller weights that failed."""
    found = []
    for precision in precisions:
        said = exported(encoder, "onnx", folder / precision, precision=precision)
        print(f"{'FAIL' if said else 'ok  '} {name}, onnx {precision}: {said or 'held'}", flush=True)
        found += [f"{name}, onnx {precision}"] * bool(said)
    return found


def prepared(encoder: Encoder, **changes: Any) -> Encoder:
    """The same towers, their preprocessing written down otherwise."""
    other = copy.copy(encoder)
    other.info = replace(encoder.info, preprocess=encoder.info.preprocess | changes)
    return other


def swapped(encoder: Encoder) -> Encoder:
    """Blue for red in the first layer's weights."""
    other = copy.copy(encoder)
    other.image = copy.deepcopy(encoder.image)
    weight: Any = other.image.model.conv1.weight
    weight.data = weight.data.flip(1)
    return other


def rebuilt(encoder: Encoder, **changes: Any) -> Encoder:
    """The same weights in another configuration."""
    other = small_vit(**changes)
    other.image.load_state_dict(encoder.image.state_dict())
    other.text.load_state_dict(encoder.text.state_dict())
    return other


CONTROLS: dict[str, Callable[[Encoder], Encoder]] = {
    "activation": lambda encoder: rebuilt(encoder, quick_gelu=False),
    "bilinear": lambda encoder: prepared(encoder, interpolation="bilinear"),
    "mean and deviation": lambda encoder: prepared(encoder, **IMAGENET),
    "end of text": lambda encoder: wrong_end(encoder),
    "channels": swapped,
}


def wrong_end(encoder: Encoder) -> Encoder:
    """Pools at the number of a comma with a space behind it, which some probes have, instead of that of the end of text."""
    other = rebuilt(encoder, end=267)
    other.tokenize = copy.copy(encoder.tokenize)
    other.tokenize.eot_token_id = 267  # type: ignore[attr-defined]
    return other


def controls(place: Path) -> tuple[int, int]:
    """Wrong folders refused, and all."""
    encoder, probes = small_vit(), Probes.of()
    caught = 0
    for kind in FORMATS:
        for name, harm in CONTROLS.items():
            folder = place / kind / name
            folder.mkdir(parents=True)
            format = make_format(kind)
            format.write(harm(encoder), folder)
            report = prove(encoder, format, folder, probes)
            caught += not report.held
            print(
                f"{'ok  ' if not report.held else 'FAIL'} {kind}, wrong {name}: {'held' if report.held else 'refused'}",
                flush=True,
            )
    return caught, len(FORMATS) * len(CONTROLS)


def artefact(kind: str, folder: Path) -> Encoder:
    """The exported folder as an encoder; the programs were written here a moment ago."""
    return clipkit.load(folder, trust_code=kind == "torch_export")


def scores(encoder: Encoder) -> dict[str, float]:
    """Accuracies of the unseen style."""
    found = clipkit.evaluate(encoder, data=TASK)
    return {key: float(found[key]) for key in ("acc1", "acc5")}


def zero_shot(place: Path, short: bool) -> tuple[float, list[str]]:
    """The largest difference of any artefact's accuracies, and the exports of the demo model that failed."""
    changes = {"run": str(place / "run"), "trainer.accelerator": "cpu", "trainer.devices": 1}
    clipkit.fit("demo", changes | ({"trainer.length": "600 steps"} if short else {}), resume="never")
    trained = encoder = clipkit.load(place / "run")
    if short:
        halfway = {"run": str(place / "quick"), "checkpoint.every": "50 steps"}
        clipkit.fit("demo-quick", changes | halfway, resume="never")
        encoder = clipkit.load(place / "quick" / "checkpoints" / "50")
    want, largest = scores(encoder), 0.0
    failed = packed(trained, "demo", ("float16", "int8"), place)
    for kind in FORMATS[:3]:  # transformers has no class for its ConvNet
        said = exported(encoder, kind, place / kind)
        if said:
            print(f"FAIL demo, {kind}: {said}")
            failed.append(f"demo, {kind}")
            continue
        found = scores(artefact(kind, place / kind))
        print(f"demo, {kind}: {found}; the checkpoint: {want}", flush=True)
        largest = max(largest, *(abs(found[key] - want[key]) for key in want))
    return largest, failed


def main() -> int:
    """Export, break and score."""
    short = quick(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        failed = failures(QUICK if short else MODELS, place / "models")
        caught, all_controls = controls(place / "controls")
        difference, more = zero_shot(place / "demo", short)
    figures = {
        "failed": figure([len(failed) + len(more)]),
        "controls_caught": figure([caught / all_controls]),
        "zero_shot_difference": figure([difference]),
    }
    return finish("export_parity", peer="the encoder that was exported", figures=figures, short=short)


if __name__ == "__main__":
    sys.exit(main())
