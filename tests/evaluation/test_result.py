"""Result files: strict JSON that CLIP_benchmark's own ``build`` reads."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import pytest
from clip_benchmark.cli import main_build
from rich.console import Console

from clipkit.evaluation.result import Result, table, write_results


def result(dataset: str = "cars", **metrics: float | None) -> Result:
    return Result(
        dataset, "ViT-B-32", "laion2b", "zeroshot_classification", {"acc1": 0.5, **metrics}, {"precision": "fp32"}
    )


def test_strict_json(tmp_path: Path) -> None:
    (path,) = write_results([result(acc5=float("nan"), samples=3)], tmp_path / "new" / "x.json")
    held = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert held == {
        "dataset": "cars",
        "model": "ViT-B-32",
        "pretrained": "laion2b",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5, "acc5": None, "samples": 3},
        "precision": "fp32",
    }


def test_clip_benchmark_builds_a_table_of_them(tmp_path: Path) -> None:
    write_results([result(), result("imagenet/v2"), Result("x", "m", "", "zeroshot_retrieval", {})], tmp_path / "all")
    main_build(Namespace(files=[str(tmp_path / "all")], output=str(tmp_path / "table.csv")))
    with (tmp_path / "table.csv").open() as file:
        rows = {row["dataset"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"cars", "imagenet/v2", "x"}
    assert rows["cars"]["acc1"] == "0.5"
    assert rows["cars"]["model_fullname"] == "ViT-B-32 laion2b"


def test_results_do_not_overwrite_one_another(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 results do not go into one file"):
        write_results([result(), result()], tmp_path / "x.json")
    with pytest.raises(
        ValueError, match=r"two results would both be cars_laion2b_ViT-B-32_zeroshot_classification.json"
    ):
        write_results([result(), result()], tmp_path)


def test_the_table_prints_percent() -> None:
    console = Console(width=100, record=True, file=None, quiet=True)
    console.quiet = False
    with console.capture() as capture:
        console.print(table([result(acc5=None, samples=12345)]))
    text = capture.get()
    assert "50.00 %" in text
    assert "12,345" in text
    assert "ViT-B-32:laion2b" in text
