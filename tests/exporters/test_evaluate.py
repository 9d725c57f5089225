"""``evaluate`` on a folder scores what the folder holds, not what it was made from."""

from pathlib import Path

import pytest

import clipkit
from clipkit.encoder import Encoder
from clipkit.exporters.formats import make_format
from clipkit.loading import load_encoder

DATA = "embedded:style_transfer"


@pytest.mark.parametrize("kind", ["open_clip", "onnx", "openvino", "immich", "transformers", "sentence_transformers"])
def test_an_artefact_scores_as_its_encoder(kind: str, vit: Encoder, tmp_path: Path) -> None:
    make_format(kind).write(vit, tmp_path)
    found, want = clipkit.evaluate(str(tmp_path), data=DATA), clipkit.evaluate(vit, data=DATA)
    assert found["acc1"] == pytest.approx(want["acc1"], abs=1e-3)
    assert found["acc5"] == pytest.approx(want["acc5"], abs=1e-3)


def test_a_folder_without_weights_does_not_pass_for_a_trained_one(vit: Encoder, tmp_path: Path) -> None:
    make_format("open_clip").write(vit, tmp_path)
    assert load_encoder(tmp_path)[0].info.pretrained == str(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    encoder, notes = load_encoder(tmp_path)
    assert encoder.info.pretrained is None
    assert "no file of weights: they are random" in notes[0]
    (tmp_path / "parity.json").write_text("{}")  # an export once
    with pytest.raises(ValueError, match="is an export that is not whole: it holds no weights; copy it again"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(("kind", "gone"), [("onnx", "textual.onnx"), ("openvino", "openvino_model_text.xml")])
def test_half_an_export_is_no_model_of_random_weights(kind: str, gone: str, vit: Encoder, tmp_path: Path) -> None:
    make_format(kind).write(vit, tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_encoder(tmp_path)
