"""Figures of both evaluators, on one process and on several gloo ranks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from clip_benchmark.metrics import zeroshot_classification

from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot, class_embeddings

from .conftest import COLOURS, ColourEncoder, png

Squares = Callable[..., Path]


def test_zero_shot(squares: Squares, encoder: Any) -> None:
    figures = ZeroShot(squares(), batch_size=3).run(encoder)
    assert figures == {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0, "samples": 10}


def test_zero_shot_counts_what_is_wrong(squares: Squares, encoder: Any) -> None:
    names = ["green", "red", "blue", "yellow", "white"]  # the first two swapped: 6 of 10 samples are wrong
    figures = ZeroShot(squares(), classnames=names, workers=1).run(encoder)
    assert figures == {"acc1": 0.4, "acc5": 1.0, "mean_per_class_recall": 0.5, "samples": 10}


def test_class_embeddings_equal_clip_benchmarks(encoder: Any) -> None:
    names, templates = ["red", "green", "blue"], ["a {c} square", "{c} and yellow", "blue {c}"]
    theirs = zeroshot_classification.zero_shot_classifier(encoder, Texts, names, templates, "cpu", amp=False)
    assert torch.allclose(class_embeddings(encoder, names, templates), theirs.T, atol=1e-6)


class Texts(list[str]):
    """Stands in for the tokens of CLIP_benchmark's code."""

    def to(self, device: str) -> "Texts":
        return self


def test_without_templates_the_default_is_said(tmp_path: Path, encoder: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name in COLOURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(COLOURS[name]))
    evaluator = ZeroShot(tmp_path)
    assert evaluator.templates == ("a photo of a {c}.", "{c}")
    assert "brings no templates: 'a photo of a {c}.' and '{c}' are used" in caplog.text
    assert evaluator.run(encoder)["acc1"] == 1.0


def test_retrieval(tmp_path: Path, encoder: Any) -> None:
    for name in COLOURS:
        (tmp_path / f"{name}.png").write_bytes(png(COLOURS[name]))
        (tmp_path / f"{name}.txt").write_text(f"a {name} square\nonly {name}")
    (tmp_path / "red.txt").write_text("a red square\na green mistake")
    figures = Retrieval(tmp_path).run(encoder)
    assert figures["image_retrieval_recall@1"] == 7 / 8
    assert figures["text_retrieval_recall@1"] == 0.75  # green ties with the mistake, and a tie is a miss
    assert figures["text_retrieval_recall@5"] == 1.0
    assert figures["image_retrieval_recall@5"] is None  # four images
    assert figures["text_retrieval_recall@10"] is None  # eight captions
    assert (figures["samples"], figures["captions"]) == (4, 8)


def test_an_unreadable_image_is_an_error_that_names_it(squares: Squares, encoder: Any) -> None:
    root = squares()
    shard = root / "test" / "1.tar"
    blue = png(COLOURS["blue"])  # sample 6
    shard.write_bytes(shard.read_bytes().replace(blue, blue[:16] + bytes(len(blue) - 16)))
    with pytest.raises(ValueError, match=r"1.tar, sample 's0000006': unreadable image \("):
        ZeroShot(root).run(encoder)


def _rank(rank: int, world: int, root: str, out: str) -> None:
    torch.set_num_threads(1)  # a forked child has no thread pool
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=world)
    encoder: Any = ColourEncoder()
    found: dict[str, Any] = {}
    found["zero_shot"] = ZeroShot(f"{root}/wds_classification", batch_size=2).run(encoder)
    found["retrieval"] = Retrieval(f"{root}/wds_retrieval").run(encoder)
    try:
        ZeroShot(f"{root}/broken").run(encoder)
    except ValueError as error:
        found["error"] = str(error)
    Path(out, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_agree_with_one_process(squares: Squares, encoder: Any, tmp_path: Path, world: int) -> None:
    sets = squares(), squares("retrieval")
    broken = tmp_path / "broken"
    for name in COLOURS:
        (broken / name).mkdir(parents=True)
        (broken / name / "1.png").write_bytes(b"" if name == "red" else png(COLOURS[name]))
    out = tmp_path / "out"
    out.mkdir()
    mp.start_processes(_rank, args=(world, str(tmp_path), str(out)), nprocs=world, start_method="fork")
    expected = {"zero_shot": ZeroShot(sets[0]).run(encoder), "retrieval": Retrieval(sets[1]).run(encoder)}
    for rank in range(world):
        found = json.loads((out / f"{rank}.json").read_text())
        assert "red/1.png: unreadable image (empty" in found.pop("error")
        assert found == expected
