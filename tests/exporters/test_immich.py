"""immich's tree: its files, their shapes, and the whole path as immich goes it."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
from PIL import Image

from benchmarks.export_models import build as build_small
from clipkit.encoder import Encoder
from clipkit.exporters.formats import make_format
from clipkit.exporters.prove import export_encoder

from .conftest import TEXTS

FORMAT = make_format("immich")


def test_the_tree(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export_encoder(vit, FORMAT, out, images=photos, texts=TEXTS).held
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files >= {
        "config.json",
        "visual/model.onnx",
        "visual/preprocess_cfg.json",
        "textual/model.onnx",
        "textual/tokenizer.json",
        "textual/tokenizer_config.json",
    }
    assert json.loads((out / "config.json").read_text())["text_cfg"]["context_length"] == 16
    assert json.loads((out / "textual" / "tokenizer_config.json").read_text())["pad_token"] == "!"
    for name, given, shape, kind in (
        ("visual", "image", [1, 3, 48, 48], "tensor(float)"),
        ("textual", "text", [1, 16], "tensor(int32)"),
    ):
        path = out / name / "model.onnx"
        assert [x.version for x in onnx.load(path).opset_import if not x.domain] == [19]
        session = onnxruntime.InferenceSession(str(path))
        (own,), (made,) = session.get_inputs(), session.get_outputs()
        assert (own.name, own.shape, own.type, made.name) == (given, shape, kind, "embedding")


@pytest.mark.parametrize(("name", "length"), [("siglip", 64), ("roberta", 32)])
def test_hugging_face_tokenizers_and_text_towers(
    name: str, length: int, photos: list[Image.Image], tmp_path: Path
) -> None:
    folder, out = tmp_path / "source", tmp_path / "out"
    folder.mkdir()
    encoder = build_small(name, folder)
    assert export_encoder(encoder, FORMAT, out, images=photos, texts=TEXTS).held
    assert json.loads((out / "config.json").read_text())["text_cfg"]["context_length"] == length
    assert onnxruntime.InferenceSession(str(out / "textual" / "model.onnx")).get_inputs()[0].shape == [1, length]


def test_a_resize_that_immich_has_not_is_refused(vit: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vit.info.preprocess, "resize_mode", "longest")
    with pytest.raises(ValueError, match="immich takes square images by shortest or squash"):
        FORMAT.refuse(vit)
