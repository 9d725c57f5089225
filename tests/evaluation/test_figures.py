"""What a specification promises is what its evaluator gives; which way each figure is better."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clipkit.config.evaluate import smaller_is_better
from clipkit.config.single import validated
from clipkit.encoder import Encoder
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.kinds import KINDS, build_evaluator, task_spec
from clipkit.towers.open_clip import pair_from_config

from ..conftest import TINY_MODEL
from .conftest import COLOURS, png

BESIDE = re.compile(r"samples$|captions$|_chance$")  # counts and chances: no figures to go by
SMALLER = re.compile(r"_rank$|^ece$|gap$|^alignment$|_uniformity$")


def class_folders(root: Path) -> Path:
    for part in ("train", "test"):
        for number, (name, rgb) in enumerate(COLOURS.items()):
            (root / part / name).mkdir(parents=True)
            with (root / part / "metadata.csv").open("a") as file:
                file.write("" if number else "file,place\n")
                file.writelines(f"{name}/{number}{n}.png,{'city' if n < 4 else 'farm'}\n" for n in range(6))
            for picture in range(6):
                colour = tuple(min(255, value + 3 * picture) for value in rgb)
                (root / part / name / f"{number}{picture}.png").write_bytes(png(colour))
    return root


def captions(root: Path) -> Path:
    root.mkdir()
    for number in range(12):
        (root / f"{number}.png").write_bytes(png((20 * number, 0, 0)))
        (root / f"{number}.txt").write_text(f"caption {number}")
    rows = ({"file": f"{number}.png", "place": number % 2 == 0} for number in range(12))
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def lines(root: Path, *rows: dict[str, Any]) -> Path:
    root.mkdir()
    for name, rgb in COLOURS.items():
        (root / f"{name}.png").write_bytes(png(rgb))
    (root / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "set.jsonl"


DATA = {
    "zero_shot": lambda root: class_folders(root) / "test",
    "retrieval": captions,
    "multi_label": lambda root: lines(root, {"image": "red.png", "labels": ["red"]}),
    "compositional": lambda root: lines(root, {"images": ["red.png", "blue.png"], "captions": ["red", "blue"]}),
    "linear_probe": class_folders,
    "knn": class_folders,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "zero_shot": {"groups": "place"},
    "retrieval": {"groups": "place"},
    "linear_probe": {"shots": [2]},
    "knn": {"k": [1, 3]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_specification_names_what_its_evaluator_gives(kind: str, tmp_path: Path) -> None:
    data = DATA[kind](tmp_path / "set")
    spec = validated(KINDS[kind].spec, {"kind": kind, "data": str(data), **OPTIONS.get(kind, {})}, kind)
    encoder = Encoder.from_pair(pair_from_config(TINY_MODEL), model="tiny", pretrained=None)
    given = build_evaluator(spec, tmp_path).run(Encodings(encoder)).figures
    assert {name for name in given if not BESIDE.search(name)} == set(spec.figures)
    assert len(set(spec.figures)) == len(spec.figures)
    for name in spec.figures:
        assert smaller_is_better(f"val/task/{name}") == bool(SMALLER.search(name)), name
    if not kind.startswith(("linear", "knn")):
        assert task_spec(data, tmp_path).kind == kind
