import json
import shutil

import pytest
import torch
from PIL import Image

import clipkit
from clipkit.checkpoint import read_checkpoint, write_checkpoint
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
    assert encoder.encode_text([]).shape == (0, 16)
    assert encoder.image.training is False


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
        (lambda path: "VitB32", "no model is called"),
    ],
)
def test_what_is_no_model_is_named(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        clipkit.load(make(tmp_path))
