"""``clipkit export`` as users call it: a run to a folder with its card, and what is refused with nothing written."""

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

import clipkit
from clipkit.checkpoint import read_average, read_checkpoint
from clipkit.cli.main import run
from clipkit.in_training import LOCK, trainer_of, training_in
from tests.conftest import TINY_MODEL, write_shard
from tests.test_training import write_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that keeps a moving average, measures a loss on held-out data, and has a result of ``clipkit evaluate`` in its folder."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.json").write_text(json.dumps(TINY_MODEL))
    deeper = TINY_MODEL | {"text_cfg": TINY_MODEL["text_cfg"] | {"layers": 2}}
    (folder / "other.json").write_text(json.dumps(deeper))
    for name, first in (("shards", 0), ("val", 100)):
        (folder / name).mkdir()
        write_shard(folder / name / "0.tar", 32, first=first)
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(4):
        Image.new("RGB", (20, 20), (60 * number, 30, 90)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"shade {number}")
    config = write_config(folder, folder / "tiny.json", folder / "shards")
    changes = {"run": str(folder / "run"), "optim.ema": 0.5, "data.val": {"squares": {"shards": f"{folder}/val/*.tar"}}}
    place = clipkit.fit(config, changes | {"trainer.length": "8 steps"}).folder
    for weights in ("--average", "--no-average"):
        assert run(["evaluate", str(place), weights, "--data", str(pictures), "--out", str(place / "results")]) == 0
    return place


def export(*arguments, out):
    return run(["export", *map(str, arguments), "--out", str(out)])


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


def test_the_card_says_where_the_weights_come_from(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(trained, "--no-average", "--license", "cc-by-4.0", out=out) == 0
    card = (out / "README.md").read_text()
    assert front_matter(card)["license"] == "cc-by-4.0"
    assert front_matter(card)["library_name"] == "open_clip"
    state = read_checkpoint(trained / "checkpoints" / "8", with_state=False).info
    source = state["lightning"]["ShardDataModule"]["sources"]["squares"]
    assert f"fingerprint `{source['shards']}`" in card
    assert (trained / "command.txt").read_text().strip() in card
    assert "  batch_size: 16" in card
    assert "- step: 8 of 8\n" in card
    (result,) = (trained / "results").glob("pictures_8_*.json")
    figures = json.loads(result.read_text())["metrics"]
    low, high = figures["image_retrieval_recall@1_ci"]
    assert card.count("image_retrieval_recall@1`") == 1  # that of the average is of other weights
    assert f"{100 * figures['image_retrieval_recall@1']:.2f} % | {100 * low:.2f} to {100 * high:.2f} %" in card
    assert "| `validation data` | `loss` |" in card
    assert "images, whole path, in batches of 7" in card
    assert "Weights: `cc-by-4.0`" in card
    again = tmp_path / "again"  # an export of the export knows as much
    assert export(out, "--format", "torch_export", out=again) == 0
    assert f"fingerprint `{source['shards']}`" in (again / "README.md").read_text()
    assert "image_retrieval_recall@1" in (again / "README.md").read_text()


def test_the_moving_average_is_taken_and_said(trained, tmp_path, capsys):
    assert export(trained, out=tmp_path / "out") == 0
    assert "the moving average of the weights" in capsys.readouterr().err
    checkpoint = trained / "checkpoints" / "8"
    average = read_average(checkpoint)
    key = "towers.by_field.image.model.proj"
    encoder = clipkit.load(tmp_path / "out")
    assert torch.equal(encoder.image.model.proj, average[key])
    assert not torch.equal(encoder.image.model.proj, read_checkpoint(checkpoint).model[key])
    assert encoder.log_scale == pytest.approx(float(average["scales.image_text.log_scale"]))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "moving average" in card
    assert card.count("image_retrieval_recall@1`") == 1  # that of the step is of other weights
    (result,) = (trained / "results").glob("pictures_8-average_*.json")
    assert f"`results/{result.name}`" in card
    assert "of the weights of the step itself" in card


def test_weights_that_were_changed_have_no_figures_of_the_run(trained, tmp_path):
    encoder = clipkit.load(trained, average=False)
    clipkit.export(encoder, "open_clip", tmp_path / "same")
    assert "| `validation data` | `loss` |" in (tmp_path / "same" / "README.md").read_text()
    with torch.no_grad():
        encoder.image.model.proj.mul_(1.5)
    clipkit.export(encoder, "open_clip", tmp_path / "other")
    card = (tmp_path / "other" / "README.md").read_text()
    assert "None measured." in card
    assert f"the weights are not those of {trained / 'checkpoints' / '8'}" in card


def test_a_card_of_small_weights_says_whose_figures_it_has(trained, tmp_path):
    out = tmp_path / "out"
    assert export(trained, "--format", "onnx", "--option", "precision=float16", "--no-average", out=out) == 0
    assert "before they became float16; these files themselves were not measured" in (out / "README.md").read_text()


def test_a_merge_lists_its_parents(trained, tmp_path, capsys):
    parts = [trained / "checkpoints" / step for step in ("8", "4")]
    out = tmp_path / "out"
    assert export(parts[0], "--merge", parts[1], "--weight", "0.25", "--no-average", out=out) == 0
    merged, first, second = (clipkit.load(place, average=False) for place in (out, *parts))
    assert torch.allclose(merged.image.model.proj, 0.75 * first.image.model.proj + 0.25 * second.image.model.proj)
    assert merged.log_scale == pytest.approx(0.75 * first.log_scale + 0.25 * second.log_scale)
    assert "geometric mean of inverse temperatures" in capsys.readouterr().err
    stored = json.loads((out / "provenance.json").read_text())
    assert [parent["share"] for parent in stored["parents"]] == [0.75, 0.25]
    card = (out / "README.md").read_text()
    assert all(parent["weights"] in card for parent in stored["parents"])
    assert "fingerprint" in card


def test_several_formats_and_their_options(trained, tmp_path):
    onnx = pytest.importorskip("onnx")
    out, formats = tmp_path / "out", ["--format", "onnx", "--format", "open_clip"]
    assert export(trained, *formats, "--option", "onnx.tokens=int32", "--option", "onnx.opset=20", out=out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["onnx", "open_clip"]
    for name in ("onnx", "open_clip"):
        assert json.loads((out / name / "parity.json").read_text())["held"]
        assert (out / name / "README.md").is_file()
    graph = onnx.load(out / "onnx" / "textual.onnx")
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT32
    assert next(x.version for x in graph.opset_import if not x.domain) == 20


BAD = [
    (["--format", "onnxx"], "there is no export format 'onnxx'; known: open_clip, onnx"),
    (["--format", "generic"], "the generic ONNX files are onnx"),
    (["--format", "onnx", "--option", "opset=18.0"], "the format onnx takes no opset=18.0; 18, 19, 20, 21, 22, 23"),
    (["--format", "open_clip", "--format", "open_clip"], "one is named twice"),
    (["--option", "colour=red"], "the format open_clip has no option 'colour'"),
    (["--option", "colour"], "write key=value"),
    (["--format", "open_clip", "--format", "torch_export", "--option", "a=b"], "write open_clip.a=b, say"),
    (["--weight", "0.5"], "--weight is the share of a --merge; there is none"),
    (["--merge", "RUN", "--weight", "1.5"], "--weight 1.5; each is the share"),
    (["--merge", "RUN", "--weight", "0.5", "--weight", "0.2"], "2 --weight for 1 --merge"),
    (["--merge", "OTHER"], "cannot be merged, their architecture differs: text_cfg.layers is 1"),
    (["--push", "nobody"], "--push nobody: write org/repo"),
    (["--dry-run"], "name the repository with --push"),
    (["--push", "a/b", "--format", "open_clip", "--format", "torch_export"], "--push takes one --format"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_what_is_refused_leaves_nothing(trained, tmp_path, capsys, arguments, words):
    model = trained / "checkpoints" / "4"
    places = {"RUN": str(trained), "OTHER": str(trained.parent / "other.json")}
    given = [places.get(argument, argument) for argument in arguments]
    assert export(model, *given, out=tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_what_one_of_several_formats_cannot_hold_is_refused_before_the_first_is_written(trained, tmp_path, capsys):
    wide = TINY_MODEL | {"vision_cfg": TINY_MODEL["vision_cfg"] | {"image_size": [32, 48]}}
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    formats = ["--format", "open_clip", "--format", "transformers"]
    assert export(tmp_path / "wide.json", *formats, out=tmp_path / "out") == 2
    assert "take square images, not 32 x 48" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["wide.json"]


def test_a_run_in_training_is_refused_and_its_checkpoint_is_not(trained, tmp_path, capsys):
    code = (
        "import sys; from pathlib import Path; from clipkit.in_training import training_in\n"
        f"with training_in(Path({str(trained)!r})): print('on', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    )
    try:
        assert holder.stdout.readline() == b"on\n"
        assert export(trained, out=tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert f"is in training (process {holder.pid} of " in said
        assert "name a checkpoint" in said
        assert export(trained / "checkpoints" / "8", "--merge", trained, out=tmp_path / "out") == 2
        assert not list(tmp_path.iterdir())
        assert export(trained / "checkpoints" / "4", out=tmp_path / "out") == 0
    finally:
        holder.kill()  # as a trainer may end
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    assert (trained / LOCK).is_file()
    assert trainer_of(trained) is None
    (trained / LOCK).unlink()


def test_a_run_is_in_training_while_it_is(tmp_path):
    with training_in(tmp_path):
        assert trainer_of(tmp_path) == "this process"
    assert trainer_of(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_corrupted_checkpoint_is_refused(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for step in ("4", "8"):
        (copy / "checkpoints" / step / "model.safetensors").write_bytes(b"cut")
    assert export(copy / "checkpoints" / "8", out=tmp_path / "out") == 2
    assert "is not usable: model.safetensors has 3 bytes" in capsys.readouterr().err
    assert export(copy, out=tmp_path / "out") == 2
    assert "has no checkpoint that verifies" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_record_that_a_kill_cut_short_is_exported_and_said(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "val/de')
    assert export(copy, "--no-average", out=tmp_path / "out") == 0
    note = "the last line of metrics.jsonl is torn and was left out"
    assert note in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert note in card
    assert "| `validation data` | `loss` |" in card


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"samples": 3}', "no object with a `step`"),
        ('{"step": "four"}', "no object with a `step`"),
        ("[4]", "no object"),
        ('{"step": 99, "val/de', "Unterminated string"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_record_is_named_with_its_line(trained, tmp_path, capsys, line, why):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    record = copy / "metrics.jsonl"
    first, *rest = record.read_text().splitlines()
    record.write_text("\n".join([first, line, *rest]) + "\n")
    assert export(copy, out=tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"error: {record}, line 2: {why}" in said
    assert "mend or remove that line" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_is_refused_before_anything_is_loaded(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    monkeypatch.setattr("clipkit.exporters.handover.load_encoder", lambda *_, **__: pytest.fail("loaded"))
    assert export(trained, out=tmp_path / "out") == 2
    assert "is not empty; name another folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    monkeypatch.undo()
    assert export(trained, "--force", out=tmp_path / "out") == 0
    assert not (tmp_path / "out" / "mine.txt").exists()
    assert (tmp_path / "out.replaced" / "mine.txt").read_text() == "kept"
    assert f"kept in {tmp_path / 'out.replaced'}" in capsys.readouterr().err
    assert export(trained, "--force", out=tmp_path / "out") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.replaced"]


def test_a_run_is_never_replaced(trained, capsys):
    before = sorted(trained.rglob("*"))
    assert export(trained, "--force", out=trained) == 2
    assert f"{trained} holds a run, which no export replaces" in capsys.readouterr().err
    assert sorted(trained.rglob("*")) == before


def test_a_tokenizer_that_cannot_be_saved_is_refused(trained, tmp_path, capsys, monkeypatch):
    from clipkit.exporters import handover

    plain = handover.load_encoder

    def other(*arguments, **named):
        encoder, notes = plain(*arguments, **named)
        own = encoder.tokenize
        encoder.tokenize = lambda texts: own(texts)
        return encoder, notes

    monkeypatch.setattr(handover, "load_encoder", other)
    for format in ("open_clip", "torch_export"):
        assert export(trained, "--format", format, out=tmp_path / "out") == 2
        assert "SimpleTokenizer" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_names_its_install_line(trained, tmp_path, capsys, monkeypatch):
    import importlib.util

    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else plain(name, *rest))
    assert export(trained, "--format", "onnx", out=tmp_path / "out") == 2
    assert "pip install 'clipkit-train[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_fcntl_shows_the_lock_of_another_process_only(tmp_path):
    with (tmp_path / LOCK).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert trainer_of(tmp_path) is None  # a record lock is this process's own


@pytest.mark.parametrize("format", ["open_clip", "transformers", "onnx", "torch_export"])
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(trained, format, tmp_path, capfd):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        code = run(["export", str(trained), "--out", str(tmp_path / "out"), "--format", format])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert "File too large" in last
    assert not os.listdir(tmp_path)
