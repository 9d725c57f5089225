"""Result files: strict JSON that CLIP_benchmark's own ``build`` reads."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import pytest
from clip_benchmark.cli import main_build
from rich.console import Console

from clipkit.evaluation.engine import headline
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


def test_an_interval_has_the_unit_of_its_figure(tmp_path: Path) -> None:
    figures = {
        "acc1": 0.5,
        "acc1_ci": [0.4, 0.6],
        "image_retrieval_mean_rank": 3.0,
        "image_retrieval_mean_rank_ci": [1.8, 4.2],
    }
    found = Result("cars", "m", "", "zeroshot_retrieval", figures)
    lines = write_results([found], tmp_path / "x.md")[0].read_text().splitlines()
    assert lines[2].endswith("| acc1 | 50.00 % | 40.00 to 60.00 % |")
    assert lines[3].endswith("| image_retrieval_mean_rank | 3.00 | 1.80 to 4.20 |")
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table([found]))
    assert "1.80 to 4.20 " in capture.get()
    assert "180" not in capture.get()
    assert headline({"text_retrieval_mean_rank": 3.0}) == "text_retrieval_mean_rank 3.00"
    row = write_results([found], tmp_path / "x.csv")[0].read_text().splitlines()[-1]
    assert row.endswith("image_retrieval_mean_rank,3.0,1.8,4.2")


def test_a_narrow_table_cuts_no_figure() -> None:
    names = ("image_retrieval_true_recall@1", "image_retrieval_true_recall@10", "text_retrieval_true_recall@10")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table([result(**dict.fromkeys(names, 0.5) | {f"{names[0]}_ci": [0.25, 0.75]})]))
    text = capture.get()
    assert all(f" {name} " in text for name in names)
    assert "…" not in text


def test_the_table_prints_percent() -> None:
    console = Console(width=100, record=True, file=None, quiet=True)
    console.quiet = False
    with console.capture() as capture:
        console.print(table([result(acc5=None, samples=12345)]))
    text = capture.get()
    assert "50.00 %" in text
    assert "12,345" in text
    assert "ViT-B-32:laion2b" in text
