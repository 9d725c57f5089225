"""A card that says what is known and nothing else, and in which a stranger's text is text."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from clipkit.encoder import Encoder
from clipkit.exporters.card import CARD, card
from clipkit.exporters.handover import Ready, make_ready
from clipkit.exporters.open_clip import OpenClipFormat
from clipkit.exporters.parity import Check, ParityReport
from clipkit.exporters.provenance import NAME, Figure, Provenance

from .conftest import TEXTS

CHECK = Check("images in batches of 1", 8, 1e-7, 0.99999, 0.1, 1e-6, "probe <b>", "difference", True)
REPORT = ParityReport(
    "open_clip", "m", (CHECK,), details={"probes": {"images": 8, "texts": 8}, "said": ["be *warned*"]}
)
PLAIN = Provenance("runs/mine", "ab12")
EVIL = (
    "</code><script>alert(1)</script> `` ` ``` \n# head\n---\n| a | b |\n<img src=x onerror=y> [x](javascript:z) "
    "![i](http://h/i.png) http://h.example <!-- --> \u202e {{x}}"
)


def html(text: str) -> str:
    """As a hub shows it: GitHub's Markdown with tables, HTML let through."""
    found: str = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text.split("---\n", 2)[2])
    return found


def test_nothing_is_made_up() -> None:
    text = card(OpenClipFormat(), REPORT, PLAIN)
    assert "## Figures\n\nNone measured." in text
    assert "Weights: not stated by whoever exported them. The code that made these files, clipkit" in text
    assert "Apache-2.0" in text
    assert all(f"- {what}: not known" in text for what in ("data", "command", "configuration"))
    fields = yaml.safe_load(text.split("---")[1])
    assert "license" not in fields
    assert "be *warned*" in html(text)


def test_a_mean_rank_is_no_share() -> None:
    known = replace(PLAIN, figures=(Figure("cars", "image_retrieval_mean_rank", 3.0, [1.8, 4.2], "x.json"),))
    assert "| `image_retrieval_mean_rank` | 3.00 | 1.80 to 4.20 |" in card(OpenClipFormat(), REPORT, known)


def test_what_strangers_wrote_is_text() -> None:
    known = replace(
        PLAIN,
        model=EVIL,
        weights=EVIL,
        command=EVIL,
        config=EVIL + "\n````\n~~~~",
        data=({"source": EVIL, EVIL: EVIL},),
        figures=(Figure(EVIL, EVIL, 0.5, [0.4, 0.6], EVIL),),
        parents=({"model": EVIL, "share": EVIL, "weights": EVIL},),
        licence=EVIL,
        notes=(EVIL,),
    )
    for one in (known, replace(known, parents=())):
        text = card(OpenClipFormat(), REPORT, one)
        fields = yaml.safe_load(text.split("---\n")[1])
        assert fields["license_name"] == EVIL
        shown = html(text)
        assert not re.findall(r"<(script|img|a |!--)", shown)
        assert [line for line in re.findall(r"<h\d>(.*?)</h\d>", shown) if line == "head"] == []
        assert "\u202e" not in shown
        assert all(
            len(re.findall("<td", row)) in (3, 4, 5)
            for row in re.findall(r"<tr>(.*?)</tr>", shown, re.DOTALL)
            if "<td" in row
        )


def test_an_encoder_of_a_name_alone(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    ready = make_ready(vit, licence="MIT")
    ready.export(OpenClipFormat(), tmp_path / "out", images=photos, texts=TEXTS)
    fields = yaml.safe_load((tmp_path / "out" / CARD).read_text().split("---")[1])
    assert (fields["license"], fields["library_name"]) == ("mit", "open_clip")
    stored = json.loads((tmp_path / "out" / NAME).read_text())
    assert Provenance.from_dict(stored) == ready.known
    assert set(stored["files"]) == {path.name for path in (tmp_path / "out").iterdir()} - {CARD, NAME}


@pytest.mark.parametrize("harm", ["{", "[]", '{"format": 9}', "other weights", "x" * (2**20 + 1)])
def test_a_strange_provenance_is_left_out_and_said(
    vit: Encoder, photos: list[Image.Image], tmp_path: Path, harm: str
) -> None:
    out = tmp_path / "out"
    Ready(vit, replace(PLAIN, command="train")).export(OpenClipFormat(), out, images=photos, texts=TEXTS)
    if harm != "other weights":  # PLAIN's hash is of none
        (out / NAME).write_text(harm)
    known = make_ready(str(out)).known
    assert known.command == ""
    assert re.search("cannot be read|is of other weights", known.notes[0])
