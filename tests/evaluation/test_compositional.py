"""Questions of one and of two images, their layouts, strict ties, chance and errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit.evaluation.compositional import Compositional
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.pairs import open_pairs

from .conftest import COLOURS, png


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, rgb in COLOURS.items():
        (tmp_path / "images" / f"{name}.png").write_bytes(png(rgb))
    return tmp_path


def test_two_images_and_strict_ties(colours: Path, encoder: Any) -> None:
    rows = [
        {"image_0": "red", "image_1": "blue", "caption_0": "red", "caption_1": "blue"},  # Winoground's, right
        {"image_0": "red", "image_1": "blue", "caption_0": "blue", "caption_1": "red"},  # wrong
        {"image_0": "red", "image_1": "red", "caption_0": "red", "caption_1": "blue"},  # one image twice: a tie
        {"image_0": "red", "image_1": "blue", "caption_0": "one", "caption_1": "two"},  # captions that tie
    ]
    file = colours / "examples.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = Compositional(file).run(Encodings(encoder))
    assert {name: found.outcomes[name].tolist() for name in ("text_acc", "image_acc", "acc")} == {
        "text_acc": [True, False, False, False],
        "image_acc": [True, False, False, False],
        "acc": [True, False, False, False],
    }
    chances = {name: found.figures[f"{name}_chance"] for name in ("text_acc", "image_acc", "acc")}
    assert chances == {"text_acc": 0.25, "image_acc": 0.25, "acc": 1 / 6}


def test_one_image(colours: Path, encoder: Any) -> None:
    rows = [
        {"image": "red.png", "captions": ["red", "blue", "green"], "group": "a"},
        {"image": "red.png", "captions": ["red square", "red circle"], "group": "b"},  # a tie is wrong
    ]
    file = colours / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = Compositional(file).run(Encodings(encoder))
    assert (found.figures["text_acc"], found.figures["image_acc"], found.figures["acc"]) == (0.5, None, None)
    assert found.figures["text_acc_chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found.details["groups"]["figures"] == {"a": 1.0, "b": 0.0}


def test_sugarcrepe(colours: Path, encoder: Any) -> None:
    for name, right in (("swap_obj", "red"), ("add_att", "blue")):
        row = {"filename": "red.png", "caption": right, "negative_caption": "green"}
        (colours / f"{name}.json").write_text(json.dumps({"0": row, "1": row}))
    found = Compositional(colours).run(Encodings(encoder))
    assert found.details["groups"]["figures"]["swap_obj"] == 1.0
    assert found.details["groups"]["counts"] == {"add_att": 2, "swap_obj": 2}


def test_errors(colours: Path) -> None:
    file = colours / "pairs.jsonl"
    for text, message in (
        ("{", "pairs.jsonl:1: no JSON"),
        ('{"image": "red.png", "captions": ["a"]}', "1 images and 1 captions; write"),
        ('{"image": "red.png", "captions": ["a", "a"]}', "the same caption twice"),
        ('{"image": "no.png", "captions": ["a", "b"]}', "no.png does not exist"),
        ('{"image": 3, "captions": ["a", "b"]}', "missing or is no text"),
        ("", "no questions at all"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_pairs(file)
    with pytest.raises(ValueError, match=r"no \.jsonl and no \.json"):
        open_pairs(colours / "images")
