"""Figures of both evaluators, on one process and on several gloo ranks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.multiprocessing as mp
from clip_benchmark.metrics import zeroshot_classification

from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot

from .conftest import COLOURS, ColourEncoder, png

Squares = Callable[..., Path]


def test_zero_shot(squares: Squares, encoder: Any) -> None:
    figures = ZeroShot(squares()).run(Encodings(encoder, batch_size=3)).figures
    head = {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0, "ece": None, "samples": 10}
    averages = {
        f"{kind}_{name}": 1.0 for kind in ("macro", "micro", "weighted") for name in ("precision", "recall", "f1")
    }
    assert figures == head | averages


def test_zero_shot_counts_what_is_wrong(squares: Squares, encoder: Any) -> None:
    names = ["green", "red", "blue", "yellow", "white"]  # the first two swapped: 6 of 10 samples are wrong
    encoder.logit_scale = 20.0
    findings = ZeroShot(squares(), classnames=names).run(Encodings(encoder, workers=1))
    figures, details = findings.figures, findings.details
    head = {"acc1": 0.4, "acc5": 1.0, "mean_per_class_recall": 0.5, "samples": 10}
    assert {name: figures[name] for name in head} == head
    assert details["confusions"] == [
        {"class": "green", "taken_for": "red", "count": 3},
        {"class": "red", "taken_for": "green", "count": 3},
    ]
    assert details["per_class"][2] == {"class": "blue", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 2}
    assert details["per_class"][4]["support"] == 0
    assert figures["macro_recall"] == 0.5  # white occurs nowhere and counts nowhere
    calibration = details["calibration"]
    assert calibration["after"]["nll"] < calibration["before"]["nll"]
    assert calibration["fitted_scale"] < calibration["scale"] == 20.0
    assert figures["ece"] == round(calibration["ece_width"], 6)


def test_class_embeddings_equal_clip_benchmarks(encoder: Any) -> None:
    names, templates = ["red", "green", "blue"], ["a {c} square", "{c} and yellow", "blue {c}"]
    theirs = zeroshot_classification.zero_shot_classifier(encoder, Texts, names, templates, "cpu", amp=False)
    assert torch.allclose(Encodings(encoder).classes(names, templates), theirs.T, atol=1e-6)


def test_prompts_of_each_class_equal_clip_benchmarks(squares: Squares, encoder: Any, tmp_path: Path) -> None:
    prompts = {
        "red": ["a red thing", "red and yellow"],
        "green": ["green"],
        "blue": ["blue"],
        "yellow": ["yellow", "y"],
    }
    names = list(COLOURS)
    theirs = zeroshot_classification.zero_shot_classifier(encoder, Texts, names, prompts, "cpu", amp=False)
    file = tmp_path / "prompts.yaml"
    file.write_text(json.dumps(prompts))
    root = squares()
    evaluator = ZeroShot(root, prompts=file)
    assert torch.allclose(Encodings(encoder).prompts(evaluator.prompts or ()), theirs.T, atol=1e-6)
    assert evaluator.run(Encodings(encoder)).figures["acc1"] == 1.0
    (root / "class_prompts.json").write_text(json.dumps(prompts))
    assert ZeroShot(root).prompts == evaluator.prompts == ZeroShot(root, prompts=prompts).prompts
    assert ZeroShot(root, templates=["{c}"]).prompts is None
    for wrong, message in (
        ({"red": ["r"]}, "3 of 4 classes have no prompts"),
        (prompts | {"pink": ["p"]}, "1 entries are no class of this set \\('pink'\\)"),
        (prompts | {"red": [3]}, "write a list of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            ZeroShot(root, prompts=wrong)
    with pytest.raises(ValueError, match="both given"):
        ZeroShot(root, prompts=prompts, templates=["{c}"])


class Texts(list[str]):
    """Stands in for the tokens of CLIP_benchmark's code."""

    def to(self, device: str) -> "Texts":
        return self


def test_each_set_is_encoded_once(squares: Squares, encoder: Any) -> None:
    counting = Counting(encoder)
    encodings, root = Encodings(cast(Any, counting)), squares()
    first = ZeroShot(root).run(encodings)
    seen = dict(counting.seen)
    again = ZeroShot(root).run(encodings)
    assert seen["encode_image"] == 10
    assert counting.seen == seen, "the second evaluator encoded the set again"
    assert first.figures == again.figures
    assert float(first.outcomes["acc1"].double().mean()) == first.figures["acc1"]


class Counting:
    """An encoder that counts what it is given."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.seen = {"encode_image": 0, "encode_text": 0}

    def __getattr__(self, name: str) -> Any:
        if name not in self.seen:
            return getattr(self.encoder, name)
        return lambda items, **how: self._count(name, items, how)

    def _count(self, name: str, items: Any, how: dict[str, Any]) -> Any:
        self.seen[name] += len(items)
        return getattr(self.encoder, name)(items, **how)


def test_without_templates_the_default_is_said(tmp_path: Path, encoder: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name in COLOURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(COLOURS[name]))
    evaluator = ZeroShot(tmp_path)
    assert evaluator.templates == ("a photo of a {c}.", "{c}")
    assert "brings no templates: 'a photo of a {c}.' and '{c}' are used" in caplog.text
    assert evaluator.run(Encodings(encoder)).figures["acc1"] == 1.0


def test_retrieval(tmp_path: Path, encoder: Any) -> None:
    for name in COLOURS:
        (tmp_path / f"{name}.png").write_bytes(png(COLOURS[name]))
        (tmp_path / f"{name}.txt").write_text(f"a {name} square\nonly {name}")
    (tmp_path / "red.txt").write_text("a red square\na green mistake")
    found = Retrieval(tmp_path).run(Encodings(encoder))
    figures = found.figures
    assert figures["image_retrieval_recall@1"] == 7 / 8
    assert figures["text_retrieval_recall@1"] == 0.75  # green ties with the mistake, and a tie is a miss
    assert figures["text_retrieval_recall@5"] == 1.0
    assert figures["image_retrieval_recall@5"] is None  # four images
    assert figures["text_retrieval_recall@10"] is None  # eight captions
    assert (figures["samples"], figures["captions"]) == (4, 8)
    assert (figures["image_retrieval_median_rank"], figures["image_retrieval_mean_rank"]) == (1.0, 11 / 8)
    # green's list: its two captions tie with the mistake, places 2 and 3; red's: its own, then (behind all) the mistake
    assert figures["text_retrieval_true_recall@1"] == (1 / 2 + 0 + 1 / 2 + 1 / 2) / 4
    assert figures["text_retrieval_true_recall@5"] == (1 / 2 + 1 + 1 + 1) / 4
    assert figures["text_retrieval_map_at_r"] == (1 / 2 + (1 / 2) / 2 + 1 + 1) / 4
    assert figures["image_retrieval_map_at_r"] == figures["image_retrieval_recall@1"]
    for name, values in found.outcomes.items():
        assert float(values.double().mean()) == figures[name]


def test_an_unreadable_image_is_an_error_that_names_it(squares: Squares, encoder: Any) -> None:
    root = squares()
    shard = root / "test" / "1.tar"
    blue = png(COLOURS["blue"])  # sample 6
    shard.write_bytes(shard.read_bytes().replace(blue, blue[:16] + bytes(len(blue) - 16)))
    with pytest.raises(ValueError, match=r"1.tar, sample 's0000006': unreadable image \("):
        ZeroShot(root).run(Encodings(encoder))


def _rank(rank: int, world: int, root: str, out: str) -> None:
    torch.set_num_threads(1)  # a forked child has no thread pool
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=world)
    encodings = Encodings(cast(Any, ColourEncoder()), batch_size=2)
    found: dict[str, Any] = {}
    found["zero_shot"] = ZeroShot(f"{root}/wds_classification").run(encodings).figures
    found["retrieval"] = Retrieval(f"{root}/wds_retrieval").run(encodings).figures
    try:
        ZeroShot(f"{root}/broken").run(encodings)
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
    alone = Encodings(encoder)
    zero_shot, retrieval = ZeroShot(sets[0]).run(alone), Retrieval(sets[1]).run(alone)
    expected = {"zero_shot": zero_shot.figures, "retrieval": retrieval.figures}
    for rank in range(world):
        found = json.loads((out / f"{rank}.json").read_text())
        assert "red/1.png: unreadable image (empty" in found.pop("error")
        assert found == expected
