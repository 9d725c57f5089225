"""Transparency and EXIF: what a receiver does with them is measured and said, and the cure that is named helps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from clipkit.encoder import Encoder
from clipkit.exporters.formats import make_format
from clipkit.exporters.handover import Ready
from clipkit.exporters.open_clip import OpenClipFormat
from clipkit.exporters.probes import Probes, rule_probes
from clipkit.exporters.prove import prove
from clipkit.exporters.provenance import Provenance

from .conftest import TEXTS

CURES = (
    "lay them on white before",
    "turn them before (PIL.ImageOps.exif_transpose)",
    "scale them before",
    'convert them before (image.convert("RGB"))',
)


@pytest.fixture(scope="module")
def folder(vit: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rules") / "out"
    Ready(vit, Provenance("tiny vit", "")).export(OpenClipFormat(), place)
    return place


def test_all_are_said_in_report_lines_and_card(folder: Path, vit: Encoder) -> None:
    stored = json.loads((folder / "parity.json").read_text())
    assert stored["held"]  # known differences are no gate
    card = (folder / "README.md").read_text()
    lines = prove(vit, OpenClipFormat(), folder, Probes.of()).lines()
    assert list(stored["rules"]) == ["transparency", "orientation", "depth", "palette"]
    for cosine, cure in zip(stored["rules"].values(), CURES, strict=True):
        assert cosine < 0.999
        (said,) = [line for line in stored["said"] if cure in line]
        assert f"has centred cosine {cosine:.4f}" in said
        assert said in card
        assert f"NOTE {said}" in lines


def test_the_probes_show_the_rules_and_the_cures_mend_them(
    folder: Path, vit: Encoder, photos: list[Image.Image]
) -> None:
    probes = rule_probes(photos)
    clear, turned, deep, palette = probes.values()
    assert clear.getchannel("A").getextrema() == (128, 128)
    assert turned.getexif()[0x0112] == 6
    candidate = OpenClipFormat().load(folder, torch.device("cpu"))
    white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    assert (deep.mode, palette.mode) == ("I;16", "P")
    scaled = Image.fromarray((np.asarray(deep) >> 8).astype(np.uint8)).convert("RGB")
    cured = [white, ImageOps.exif_transpose(turned), scaled, palette.convert("RGB")]
    ours = vit.encode_image(list(probes.values()))
    assert (candidate.raw_image(list(probes.values())) - ours).abs().amax(1).min() > 5e-3
    torch.testing.assert_close(candidate.raw_image(cured), ours, atol=1e-3, rtol=0)


def test_a_receiver_that_has_our_rules_is_told_nothing(
    folder: Path, vit: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = OpenClipFormat.load
    ours = lambda *given: replace(plain(*given), raw_image=vit.encode_image)  # noqa: E731
    monkeypatch.setattr(OpenClipFormat, "load", ours)
    report = prove(vit, OpenClipFormat(), folder, Probes.of())
    assert min(report.details["rules"].values()) > 0.9999
    assert not [line for line in report.details["said"] if "known difference" in line]


def test_it_is_measured_for_each_receiver(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    """What transformers does with transparency depends on its version: its release 5 lays it on white."""
    pytest.importorskip("transformers")
    format = make_format("transformers")
    format.write(vit, tmp_path)
    candidate = format.load(tmp_path, torch.device("cpu"))
    report = prove(vit, format, tmp_path, Probes.of(photos, TEXTS))
    clear = rule_probes(photos)["transparency"]
    same = torch.allclose(candidate.raw_image([clear]), vit.encode_image([clear]), atol=1e-3)
    assert (report.details["rules"]["transparency"] > 0.9999) == same
    assert any(CURES[0] in line for line in report.details["said"]) != same
    assert any(CURES[1] in line for line in report.details["said"])
