"""Questions of one and of two images, their layouts, strict ties, chance and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.evaluation.compositional import Compositional
from clipkit.evaluation.digests import digest
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.feature_cache import manifest_digest
from clipkit.evaluation.pairs import open_pairs
from clipkit.evaluation.samples import ImageFile

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


def test_aro_cuts_the_box_out(colours: Path, encoder: Any) -> None:
    both = Image.new("RGB", (20, 10), COLOURS["red"])
    both.paste(COLOURS["blue"], (10, 0, 20, 10))
    both.save(colours / "images" / "both.png")
    rows = [
        {"image_path": "both.png", "true_caption": name, "false_caption": other, "relation_name": name}
        | dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True))
        for name, other, box in (("red", "blue", (0, 0, 10, 10)), ("blue", "red", (10, 2, 8, 8)))
    ]
    file = colours / "visual_genome_relation.json"
    file.write_text(json.dumps(rows))
    found = Compositional(file).run(Encodings(encoder))
    assert found.figures["text_acc"] == 1.0
    assert found.details["groups"]["figures"] == {"red": 1.0, "blue": 1.0}
    over = ImageFile(colours / "images" / "both.png", box=(-3, 5, 12, 14))
    theirs = Image.open(over.path).crop(over.box)
    assert torch.equal(over.decode(), torch.from_numpy(np.array(theirs)).permute(2, 0, 1))
    rows[0]["bbox_w"] = 0
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"relation.json, 0: the box \[0, 0, 0, 10\] is no left"):
        open_pairs(file)


def test_boxes_of_one_image_are_images_of_their_own(colours: Path) -> None:
    one, other = (ImageFile(colours / "images" / "red.png", box=(0, 0, 5, bottom)) for bottom in (5, 6))
    assert digest([one]) != digest([other])
    assert manifest_digest([one]) != manifest_digest([other])


def test_order_sets_leave_out_what_shuffling_left_alone(
    colours: Path, encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"image": "red.png", "caption_options": ["red", "blue", "blue", "red", "green"]},
        {"image": "red.png", "caption_options": ["red", "red", "red"]},
    ]
    (colours / "coco_order.json").write_text(json.dumps(rows))
    found = Compositional(colours / "coco_order.json").run(Encodings(encoder))
    assert (found.figures["samples"], found.figures["text_acc"]) == (1, 1.0)
    assert found.figures["text_acc_chance"] == pytest.approx(1 / 3)
    assert "1 of 2 questions have no other caption than the right one: left out" in caplog.text


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
