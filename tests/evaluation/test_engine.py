"""Several sets in one call: written, taken over, counted, refused; the files that come of it."""

import csv
import json
import tarfile
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from clip_benchmark.cli import main_build

from clipkit.cli.main import run
from clipkit.config.evaluate import ZeroShotSpec
from clipkit.encoder import Encoder, EncoderInfo
from clipkit.evaluation.digests import digest
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.engine import Question, Setting, evaluate_sets
from clipkit.evaluation.fingerprints import encoder_hashes, evaluator_hashes
from clipkit.evaluation.preprocessing import preprocessing_doubt
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot
from clipkit.towers.open_clip import pair_from_config

from ..conftest import TINY_MODEL


def tiny():
    torch.manual_seed(0)
    return Encoder.from_pair(pair_from_config(TINY_MODEL), model="tiny", pretrained=None)


@pytest.fixture(scope="module")
def real():
    return tiny()


def test_results_are_strict_json_that_clip_benchmark_builds_a_table_of(squares, real, tmp_path):
    questions = [Question("squares", ZeroShot(squares())), Question("pairs", Retrieval(squares("retrieval")))]
    results = evaluate_sets(real, questions, Setting(seed=3), out=tmp_path / "out")
    held = json.loads((tmp_path / "out" / results[0].filename).read_text(), parse_constant=pytest.fail)
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(held)
    low, high = held["metrics"]["acc1_ci"]
    assert low <= held["metrics"]["acc1"] <= high
    assert (held["seed"], held["precision"], held["metrics"]["samples"], held["ranks"]) == (3, "fp32", 10, 1)
    assert set(held["hashes"]) == {"weights", "preprocessing", "data", "prompts", "question"}
    assert held["device"]
    assert held["clipkit"]
    assert results[1].metrics["image_retrieval_recall@5_ci"]
    main_build(Namespace(files=[str(tmp_path / "out")], output=str(tmp_path / "table.csv")))
    rows = {row["dataset"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert float(rows["squares"]["acc1"]) == held["metrics"]["acc1"]


def test_a_result_with_equal_hashes_is_taken_over(squares, real, tmp_path):
    said, root = [], squares()
    first = evaluate_sets(real, [Question("a", ZeroShot(root))], Setting(), out=tmp_path / "out")
    again = evaluate_sets(real, [Question("a", ZeroShot(root))], Setting(), out=tmp_path / "out", say=said.append)
    assert "taken over" in said[0]
    assert again[0].to_dict() == first[0].to_dict()
    changes = [
        (Question("a", ZeroShot(root, templates=["{c}"])), Setting()),
        (Question("a", ZeroShot(root)), Setting(precision="bf16")),
        (Question("a", ZeroShot(root)), Setting(seed=1)),
    ]
    for question, setting in changes:
        said.clear()
        evaluate_sets(real, [question], setting, out=tmp_path / "out", say=said.append)
        assert "taken over" not in said[0]


def test_hashes_tell_what_differs(squares, real):
    root = squares()
    plain = evaluator_hashes(ZeroShot(root))
    other = evaluator_hashes(ZeroShot(root, classnames=["a", "b", "c", "d"]))
    assert plain == evaluator_hashes(ZeroShot(root))
    assert plain["prompts"] != other["prompts"]
    labels = ZeroShot(root)
    labels.data = replace(labels.data, labels=labels.data.labels.flip(0))
    assert evaluator_hashes(labels)["data"] != plain["data"]
    changed = tiny()
    with torch.no_grad():
        next(changed.image.parameters()).view(-1)[0] += 1
    assert encoder_hashes(changed)["weights"] != encoder_hashes(real)["weights"] == encoder_hashes(tiny())["weights"]
    plain, tokenize = encoder_hashes(changed), changed.tokenize
    changed.tokenize = lambda texts: tokenize([text.replace("cats", "dogs") for text in texts])
    assert encoder_hashes(changed) == plain | {"preprocessing": encoder_hashes(changed)["preprocessing"]} != plain
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_a_set_of_the_wrong_size_is_refused(squares, real):
    with pytest.raises(ValueError, match="squares: 10 samples, but the whole set has 12"):
        evaluate_sets(real, [Question("squares", ZeroShot(squares()), expected=12)], Setting())


def test_a_shard_that_lost_whole_samples_is_refused_where_a_list_counts_them(squares):
    from clipkit.data.indexing import write_folder_index

    root = squares()
    write_folder_index(root / "test")
    shard = root / "test" / "1.tar"
    with tarfile.open(shard) as tar:
        kept = [(member, tar.extractfile(member).read()) for member in tar.getmembers()[:-2]]
    with tarfile.open(shard, "w") as tar:
        import io

        for member, data in kept:
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(ValueError, match=r"1.tar: 4 samples in .* but index.json beside it lists 5"):
        ZeroShot(root)


def test_broken_weights_are_said_and_no_figure_is_given(squares):
    encoder = tiny()
    with torch.no_grad():
        for parameter in encoder.image.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="10 of 10 embeddings hold NaN or infinity, the first is of .*s0000000"):
        ZeroShot(squares()).run(Encodings(encoder))
    with pytest.raises(ValueError, match="precision 'int8' is not known"):
        Encodings(encoder, precision="int8")


def test_texts_beyond_the_context_are_counted(squares, real):
    said = []
    long = "a very " + "long " * 40 + "{c}"
    results = evaluate_sets(
        real, [Question("a", ZeroShot(squares(), templates=[long, "{c}"]))], Setting(), say=said.append
    )
    assert results[0].details["texts_cut"] == 4
    assert "warning: a: 4 texts are longer than the context and were cut" in said


def test_sorted_batches_give_the_embeddings_of_single_texts(real):
    texts = ["a", "a much longer text than the first of them", "two words", "a b c d e f g", "x"] * 3
    alone = torch.cat([real.encode_text([text]) for text in texts])
    assert torch.allclose(real.encode_text(texts, batch_size=4), alone, atol=1e-6)


def test_preprocessing_that_slipped_in_is_said(real, tmp_path):
    import open_clip

    weights = tmp_path / "w.safetensors"
    weights.touch()
    clip = {"size": 224, "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    siglip = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}

    def doubt(model_config, preprocess, pretrained=str(weights)):
        info = EncoderInfo("m", pretrained, model_config, preprocess)
        return preprocessing_doubt(Namespace(info=info))

    assert "looks like a default that this model does not want: mean (0.48" in doubt(config, clip)
    assert doubt(config, siglip) is None
    assert doubt(config, clip, pretrained=None) is None
    assert doubt(open_clip.get_model_config("ViT-B-32"), clip) is None


def test_the_command_line(squares, tiny_model, tmp_path, capsys):
    root = squares()
    for out in ("x.csv", "x.md", "x.json", "all"):
        assert run(["evaluate", str(tiny_model), "--data", str(root), "--out", str(tmp_path / out)]) == 0
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert [row["figure"] for row in rows] == [*ZeroShotSpec(kind="zero_shot", data="x").figures, "samples"]
    assert float(rows[0]["low"]) <= float(rows[0]["value"]) <= float(rows[0]["high"])
    assert "| wds_classification |" in (tmp_path / "x.md").read_text()
    assert json.loads((tmp_path / "x.json").read_text())["metrics"]["samples"] == 10
    option = ["--option", "templates=['a {c} thing']", "--task", "zero_shot"]
    assert run(["evaluate", str(tiny_model), "--data", str(root), *option]) == 0
    capsys.readouterr()
    assert run(["evaluate", str(tiny_model), "--data", str(root), "--option", "template=x"]) == 2
    assert "there is no option 'template'; did you mean 'templates'?" in capsys.readouterr().err
    assert run(["evaluate", str(tiny_model), "--data", str(root), "--task", "zeroshot"]) == 2
    assert run(["evaluate", str(tiny_model)]) == 2
    assert "give --data PATH, or --suite NAME" in capsys.readouterr().err


def test_two_processes_give_the_files_of_one(squares, tiny_model, tmp_path):
    import subprocess
    import sys

    root, found = squares("retrieval"), {}
    for devices in ("1", "2"):
        out = tmp_path / f"{devices}.json"
        command = [sys.executable, "-m", "clipkit", "evaluate", str(tiny_model), "--data", str(root), "--out", str(out)]
        done = subprocess.run([*command, "--devices", devices], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("image_ret") >= 1
        found[devices] = json.loads(out.read_text())
        assert found[devices].pop("ranks") == int(devices)
    assert found["1"] == found["2"]
