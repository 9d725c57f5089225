import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.checkpoint import read_checkpoint, write_checkpoint
from clipkit.cli.main import run as main
from clipkit.loading import load_encoder
from tests.conftest import TINY_MODEL, write_shard
from tests.test_training import write_config

TEXTS = ["a red square", "number seven", ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    (folder / "tiny.json").write_text(json.dumps(TINY_MODEL))
    (folder / "shards").mkdir()
    write_shard(folder / "shards" / "0.tar", 64)
    config = write_config(folder, folder / "tiny.json", folder / "shards")
    return clipkit.fit(config, {"run": str(folder / "run")}).folder


def embeddings(model):
    encoder = clipkit.load(model)
    images = [Image.new("RGB", (37, 20), (200, 30, 30)), Image.new("L", (16, 16), 90)]
    return torch.cat([encoder.encode_image(images), encoder.encode_text(TEXTS)])


def test_a_run_its_checkpoint_and_its_export_are_one_encoder(run, tmp_path):
    want = embeddings(run)
    assert torch.equal(embeddings(run / "checkpoints" / "12"), want)
    assert not torch.allclose(embeddings(run / "checkpoints" / "4"), want, atol=1e-4)
    report = clipkit.export(run, "open_clip", tmp_path / "out")
    assert report.held
    torch.testing.assert_close(embeddings(tmp_path / "out"), want, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="--force"):
        clipkit.export(run, "open_clip", tmp_path / "out")
    with pytest.raises(ValueError, match="known: open_clip"):
        clipkit.export(run, "onnxx", tmp_path / "other")


def test_the_newest_that_verifies_is_loaded_and_the_other_is_named(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "12" / "model.safetensors").write_bytes(b"cut")
    encoder, notes = load_encoder(copy)
    assert encoder.info.pretrained == "8"
    assert "12" in notes[0]
    assert "3 bytes" in notes[0]
    for folder in (copy / "checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no checkpoint that verifies"):
        load_encoder(copy)


def test_a_loaded_run_trains_on_from_its_weights(run, tmp_path):
    config = write_config(tmp_path, run, run.parent / "shards")
    more = clipkit.fit(config, {"run": str(tmp_path / "more"), "trainer.length": "3 steps", "optim.lr": 0.0})
    torch.testing.assert_close(embeddings(more.folder), embeddings(run))


def test_encoders_refuse_what_makes_no_sense(run):
    encoder = clipkit.load(run)
    with pytest.raises(ValueError, match="takes a list of texts"):
        encoder.encode_text("a dog")
    with pytest.raises(ValueError, match="at least 1"):
        encoder.encode_text(["a"], batch_size=0)
    with pytest.raises(ValueError, match="encode_text takes texts, and None is none"):
        encoder.encode_text(["a", None])
    picture = Image.new("RGB", (20, 20))
    for one in (picture, "a.png", torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"a list of images is embedded, got one .*; write \[image\]"):
            encoder.encode_image(one)
    for odd in ("a.png", np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"not a (str|ndarray); open files with PIL.Image.open"):
            encoder.encode_image([picture, odd])
    assert encoder.encode_text([]).shape == (0, 16)
    assert encoder.image.training is False


@pytest.fixture(scope="module")
def averaged(run, tmp_path_factory):
    """A run that keeps a moving average of its weights."""
    folder = tmp_path_factory.mktemp("averaged")
    config = write_config(folder, run.parent / "tiny.json", run.parent / "shards")
    return clipkit.fit(config, {"run": str(folder / "run"), "optim.ema": 0.5, "trainer.length": "4 steps"}).folder


def test_what_is_loaded_is_what_is_exported(averaged, tmp_path, capsys):
    encoder = clipkit.load(averaged)
    assert encoder.info.averaged
    assert capsys.readouterr().err.count("the moving average of the weights") == 1
    plain = clipkit.load(averaged, average=False)
    assert not plain.info.averaged
    assert "average" not in capsys.readouterr().err
    assert not torch.equal(encoder.encode_text(TEXTS), plain.encode_text(TEXTS))
    for average, want in ((True, encoder), (False, plain)):
        clipkit.export(averaged, "open_clip", tmp_path / str(average), average=average)
        exported = clipkit.load(tmp_path / str(average))
        torch.testing.assert_close(exported.encode_text(TEXTS), want.encode_text(TEXTS), atol=1e-6, rtol=0)


def test_a_run_starts_from_the_step_of_another(averaged, run, tmp_path):
    config = write_config(tmp_path, averaged, run.parent / "shards")
    more = clipkit.fit(config, {"run": str(tmp_path / "more"), "trainer.length": "3 steps", "optim.lr": 0.0})
    wanted = clipkit.load(averaged, average=False).encode_text(TEXTS)
    torch.testing.assert_close(clipkit.load(more.folder).encode_text(TEXTS), wanted)


@pytest.mark.parametrize("average", [True, False])
def test_search_loads_the_weights_that_embedded(averaged, tmp_path, average):
    for number in range(2):
        Image.new("RGB", (20, 20), (200 * number, 30, 90)).save(tmp_path / f"{number}.png")
    arguments = ["embed", str(averaged), str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--average" if average else "--no-average"]) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["averaged"] is average
    for model in (None, averaged):
        assert len(clipkit.search(tmp_path / "out", ["red"], model=model)[0][1]) == 2
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(json.dumps(str(averaged)), '"runs/gone"'))
    with pytest.raises(
        ValueError, match=r"manifest.json names the model runs/gone: .*where it moved, name it with --model"
    ):
        clipkit.search(tmp_path / "out", ["red"])
    assert len(clipkit.search(tmp_path / "out", ["red"], model=averaged)[0][1]) == 2


@pytest.mark.parametrize(
    "state",
    [[], {"callbacks": 3}, {"callbacks": {"Ema": {"weights": [1]}}}, {"callbacks": {"Ema": {"weights": {"a": 1}}}}],
)
def test_an_average_that_is_none_is_bad_input(averaged, tmp_path, state):
    whole = read_checkpoint(averaged / "checkpoints" / "4")
    write_checkpoint(tmp_path / "4", model=whole.model, state={"x": 1}, info=whole.info)
    torch.save(state, tmp_path / "4" / "state.pt")
    data = (tmp_path / "4" / "state.pt").read_bytes()
    manifest = json.loads((tmp_path / "4" / "manifest.json").read_text())
    manifest["files"]["state.pt"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "4" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="name another checkpoint"):
        clipkit.load(tmp_path / "4")


@pytest.mark.parametrize("tower", ["text", "image"])
def test_a_checkpoint_without_one_of_the_towers_says_so(run, tmp_path, tower):
    whole = read_checkpoint(run / "checkpoints" / "12")
    rest = {name: value for name, value in whole.model.items() if not name.startswith(f"towers.by_field.{tower}.")}
    assert len(rest) < len(whole.model)
    write_checkpoint(tmp_path / "12", model=rest, state=whole.state, info=whole.info)
    with pytest.raises(ValueError, match=f"12 has no {tower} tower; a model here takes both"):
        clipkit.load(tmp_path / "12")


def test_a_configuration_without_a_text_tower_says_so(tmp_path):
    (tmp_path / "seeing.json").write_text(json.dumps({key: TINY_MODEL[key] for key in ("embed_dim", "vision_cfg")}))
    with pytest.raises(ValueError, match=r"seeing\.json is no open_clip model configuration: text_cfg missing"):
        clipkit.load(tmp_path / "seeing.json")


def test_random_weights_are_said():
    _, notes = load_encoder("RN50")
    assert "random weights" in notes[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "is no model"),
        (lambda path: path / "nothing.pt", "does not exist"),
        (lambda path: (path / "w.pt").write_bytes(b"x") and path / "w.pt", "does not say which architecture"),
        (lambda path: "ViT-B-32:no_such_tag", "no_such_tag"),
        (lambda path: "hf-hub:no/such", "cannot build the model 'hf-hub:no/such'"),
        (lambda path: "VitB32", "no model is called 'VitB32': did you mean ViT-B-32"),
        (
            lambda path: (path / "runs" / "small").mkdir(parents=True) or path / "runs" / "smal",
            r"did you mean .*runs/small\? ",
        ),
    ],
)
def test_what_is_no_model_is_named(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        clipkit.load(make(tmp_path))
