"""Several labels an image: shards as CLIP_benchmark writes them, a JSONL, and their errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from clip_benchmark.datasets.builder import build_wds_dataset
from clip_benchmark.metrics import zeroshot_classification

from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.multi_label import MultiLabel, open_multi_label

from .conftest import COLOURS, png

NAMES = list(COLOURS)


def write(root: Path, rows: list[Any]) -> Path:
    (root / "test").mkdir(parents=True)
    with webdataset.TarWriter(str(root / "test" / "0.tar")) as sink:
        for number, row in enumerate(rows):
            colour = list(COLOURS.values())[number % 4]
            sink.write({"__key__": f"s{number:07d}", "png": png(colour), "npy": np.array(row)})
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(NAMES))
    (root / "zeroshot_classification_templates.txt").write_text("a {c} square")
    (root / "dataset_type.txt").write_text("multilabel")
    return root


def test_shards_equal_clip_benchmark(tmp_path: Path, encoder: Any) -> None:
    torch.manual_seed(0)
    rows = (torch.rand(8, 4) < 0.4).int().tolist()
    rows[0] = [1, 1, 1, 1]
    root = write(tmp_path / "wds_colours", rows)
    found = MultiLabel(root).run(Encodings(encoder))
    theirs = build_wds_dataset("wds/colours", transform=lambda image: image, split="test", data_dir=str(root))
    assert [target.tolist() for _, target in theirs] == rows == open_multi_label(root).targets.int().tolist()
    scores = (
        Encodings(encoder).images(open_multi_label(root).images) @ Encodings(encoder).classes(NAMES, ["a {c} square"]).T
    )
    scores += 1e-5 * torch.arange(8)[:, None] * (1 - 2 * torch.tensor(rows))  # what ties, against the model
    expected = zeroshot_classification.average_precision_per_class(scores, torch.tensor(rows))
    assert found.figures["mean_average_precision"] == pytest.approx(float(expected.mean()), abs=1e-2)
    assert found.figures["mean_average_precision_chance"] == pytest.approx(sum(map(sum, rows)) / 32)
    assert found.details["per_class"][0]["support"] == sum(row[0] for row in rows)


def test_a_jsonl(tmp_path: Path, encoder: Any) -> None:
    lines = []
    for name in COLOURS:
        (tmp_path / f"{name}.png").write_bytes(png(COLOURS[name]))
        lines.append(json.dumps({"image": f"{name}.png", "labels": [name]}))
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(lines))
    figures = MultiLabel(file, templates=["{c}"]).run(Encodings(encoder)).figures
    assert figures["mean_average_precision"] == figures["mean_average_precision_11_point"] == 1.0
    assert figures["mean_average_precision_chance"] == 0.25


def test_errors_name_place_and_cure(tmp_path: Path) -> None:
    for number, (row, message) in enumerate((([0, 1], "holds 2 labels, but there are 4"), ([0, 1, 2, 0], "0 or 1"))):
        with pytest.raises(ValueError, match=f"s0000000.*{message}"):
            open_multi_label(write(tmp_path / str(number), [row]))
    file = tmp_path / "labels.jsonl"
    for text, message in (
        ("{", "labels.jsonl:1: no JSON"),
        ('{"image": "a.png"}', "labels.jsonl:1: .*write"),
        ('{"image": "a.png", "labels": []}', "a.png does not exist"),
        ("", "no images at all"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_multi_label(file)
    with pytest.raises(ValueError, match="come as CLIP_benchmark's shards or as a .jsonl"):
        open_multi_label(tmp_path)
