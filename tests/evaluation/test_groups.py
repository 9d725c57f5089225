"""Figures by a metadata key, against the same figures of each part alone; geometry."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import metrics
from clipkit.evaluation import retrieval
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot

from .conftest import COLOURS, png

Squares = Callable[..., Path]


def put_json(root: Path, value: Callable[[int], Any]) -> None:
    """Gives each sample of the shards a ``.json`` right after its image."""
    for shard in (root / "test").glob("*.tar"):
        with tarfile.open(shard) as tar:
            held = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        with tarfile.open(shard, "w") as tar:
            for name, data in held:
                extra = json.dumps(value(int(name[1:8]))).encode()
                files = [(name, data), (f"{name[:8]}.json", extra)] if name.endswith(".png") else [(name, data)]
                for file, content in files:
                    info = tarfile.TarInfo(file)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def test_zero_shot_by_the_json_of_shards(squares: Squares, encoder: Any) -> None:
    root = squares(names=("red", "green", "yellow", "blue"))  # the last two are named wrong
    put_json(root, lambda number: {"place": "city" if number < 4 else "farm"})
    found = ZeroShot(root, groups="place").run(Encodings(encoder))
    table = found.details["groups"]["acc1"]
    right = [(number % 4) < 2 for number in range(10)]
    expected = {"city": sum(right[:4]) / 4, "farm": sum(right[4:]) / 6}
    assert table["figures"] == pytest.approx(expected)
    assert table["counts"] == {"city": 4, "farm": 6}
    assert table["worst"] == "city"
    assert found.figures["acc1_worst_group"] == expected["city"]
    assert found.figures["acc1_group_gap"] == pytest.approx(expected["farm"] - expected["city"])
    assert found.figures["acc5_group_gap"] is None


def test_retrieval_by_a_column_of_the_csv(tmp_path: Path, encoder: Any) -> None:
    rows = ["filepath,caption,place"]
    for number, name in enumerate(COLOURS):
        (tmp_path / f"{name}.png").write_bytes(png(COLOURS[name]))
        said = name if number < 3 else "red"  # the last is captioned wrong
        rows += [f"{name}.png,{said} {turn},{'in' if number < 2 else 'out'}" for turn in range(1 + number)]
    (tmp_path / "set.csv").write_text("\n".join(rows))
    found = Retrieval(tmp_path / "set.csv", groups="place").run(Encodings(encoder))
    table = found.details["groups"]["image_retrieval_recall@1"]
    assert table["counts"] == {"in": 3, "out": 7}
    assert table["figures"] == pytest.approx({"in": 1.0, "out": 3 / 7})
    assert found.details["groups"]["text_retrieval_recall@1"]["counts"] == {"in": 2, "out": 2}
    assert found.figures["image_retrieval_recall@1_worst_group"] == pytest.approx(3 / 7)


def test_the_highest_rank_is_the_worst() -> None:
    ranks = torch.tensor([1.0, 5.0, 2.0])
    assert metrics.by_group(ranks, ["a", "b", "b"], smaller_is_better=True).worst == "b"
    assert metrics.by_group(ranks, ["a", "b", "b"]).worst == "a"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (None, "", "groups: place, but no metadata.csv and no metadata.jsonl"),
        ("metadata.csv", "file,place\na.png,x\n", "1 of 2 images have no row, such as .*b.png"),
        ("metadata.csv", "file,spot\na.png,x\n", "metadata.csv:2: no value under 'place'; there are file, spot"),
        ("metadata.csv", "name,place\na.png,x\n", "metadata.csv:2: no image; write its path"),
        ("metadata.csv", "file,place\na.png,x\na.png,y\n", "metadata.csv:3: place is 'y', but 'x' before"),
        ("metadata.jsonl", '{"file": "a.png"', "metadata.jsonl:1: its metadata are no JSON"),
    ],
)
def test_errors_of_groups(tmp_path: Path, name: str | None, text: str, said: str) -> None:
    for image in "ab":
        (tmp_path / f"{image}.png").write_bytes(png((0, 0, 0)))
        (tmp_path / f"{image}.txt").write_text("caption")
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        Retrieval(tmp_path, groups="place")


def test_geometry(squares: Squares, encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, encodings = Retrieval(squares("retrieval")), Encodings(encoder)
    found = task.run(encodings)
    image, text = encodings.images(task.data.images), encodings.texts(task.data.texts)
    assert found.figures["modality_gap"] == pytest.approx(float((image.mean(0) - text.mean(0)).norm()), abs=1e-5)
    pairs = (image[task.data.owner] - text).square().sum(1).mean()
    assert found.figures["alignment"] == pytest.approx(float(pairs), abs=1e-5)
    near = (-2 * torch.pdist(text.double()).square()).exp().mean().log()
    assert found.figures["text_uniformity"] == pytest.approx(float(near), abs=1e-5)
    assert found.details["uniformity_rows"] == {"image": 10, "text": 20}
    monkeypatch.setattr(retrieval, "UNIFORMITY_ROWS", 5)
    fewer = task.run(encodings)
    assert fewer.details["uniformity_rows"] == {"image": 5, "text": 5}
    near = (-2 * torch.pdist(text[::4].double()).square()).exp().mean().log()
    assert fewer.figures["text_uniformity"] == pytest.approx(float(near), abs=1e-5)
