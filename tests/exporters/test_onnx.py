"""ONNX files that onnxruntime runs at any batch size, and a check that catches every wrong file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from clipkit.encoder import Encoder
from clipkit.evaluation.fingerprints import encoder_hashes
from clipkit.exporters.formats import make_format
from clipkit.exporters.onnx import OnnxFormat
from clipkit.exporters.parity import ParityError
from clipkit.exporters.probes import RANKED, Probes, embedded_probes
from clipkit.exporters.prove import export_encoder, prove
from clipkit.loading import load_encoder, load_pair
from clipkit.towers.open_clip import pair_from_config

from .conftest import CONFIGS, TEXTS, build

FORMAT = OnnxFormat()


@pytest.fixture(scope="module")
def folder(vit: Encoder, photos: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "out"
    assert export_encoder(vit, FORMAT, out, images=photos, texts=TEXTS).held
    return out


def test_files(folder: Path, vit: Encoder) -> None:
    assert sorted(x.name for x in folder.iterdir()) == [
        "open_clip_config.json",
        "parity.json",
        "textual.onnx",
        "visual.onnx",
    ]
    report = json.loads((folder / "parity.json").read_text())
    assert report["held"]
    assert {check["name"] for check in report["checks"]} >= {f"images in batches of {size}" for size in (1, 2, 7)}
    for name, given in (("visual", "image"), ("textual", "text")):
        model = onnx.load(folder / f"{name}.onnx")
        assert [x.version for x in model.opset_import if not x.domain] == [18]
        assert (model.graph.input[0].name, model.graph.output[0].name) == (given, "features")
        assert b"site-packages" not in model.SerializeToString()  # nothing of the building machine
        assert str(Path(__file__).parents[2]).encode() not in model.SerializeToString()
    textual = onnxruntime.InferenceSession(str(folder / "textual.onnx"))
    for size in (1, 2, 7):
        tokens = vit.tokenize((TEXTS * 2)[:size])
        (found,) = textual.run(None, {"text": tokens.numpy()})
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(found, vit.encode_text((TEXTS * 2)[:size]).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("convnext", {"tokens": "int32"}), ("siglip", {"pixels": "uint8", "opset": 20})]
)
def test_other_towers_and_options(
    name: str, options: dict[str, Any], photos: list[Image.Image], tmp_path: Path
) -> None:
    report = export_encoder(build(name), make_format("onnx", options), tmp_path / "out", images=photos, texts=TEXTS)
    assert report.held
    again = load_encoder(tmp_path / "out")[0]
    assert again.logit_bias == build(name).logit_bias
    assert torch.allclose(again.encode_image(photos), build(name).encode_image(photos), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"pixels": "uint8", "tokens": "int32"}])
def test_what_the_card_says_of_loading_works(
    options: dict[str, str], vit: Encoder, photos: list[Image.Image], tmp_path: Path
) -> None:
    format = make_format("onnx", options)
    format.write(vit, tmp_path)
    found: dict[str, Any] = {"picture": photos[0]}
    exec(format.usage.replace("FOLDER", str(tmp_path)), found)
    assert np.allclose(found["image"], vit.encode_image(photos[:1]), atol=1e-3)
    assert np.allclose(found["text"], vit.encode_text(["a red bicycle"]), atol=1e-5)


def test_smaller_weights(vit: Encoder, folder: Path, photos: list[Image.Image], tmp_path: Path) -> None:
    whole = (folder / "visual.onnx").stat().st_size
    for precision, share in (("float16", 0.6), ("int8", 0.5)):
        made = make_format("onnx", {"precision": precision})
        report = export_encoder(vit, made, tmp_path / precision, images=photos, texts=TEXTS)
        assert report.details["precision"] == precision
        assert f"weights are stored as {precision}" in report.details["said"][1]
        assert (tmp_path / precision / "visual.onnx").stat().st_size < share * whole
        again = load_encoder(tmp_path / precision)[0].encode_text(TEXTS)
        assert 0 < (again - vit.encode_text(TEXTS)).abs().max() < 2e-2


def test_int8_leaves_weights_of_few_a_channel_and_the_projection_alone(tmp_path: Path) -> None:
    encoder = build("convnext")
    make_format("onnx", {"precision": "int8"}).write(encoder, tmp_path)
    weights = {x.name: x for x in onnx.load(tmp_path / "visual.onnx").graph.initializer}
    for name in ("trunk.stages.0.blocks.0.conv_dw.weight", "head.proj.weight"):
        held = onnx.numpy_helper.to_array(weights[f"tower.model.{name}"])
        assert np.array_equal(held, encoder.image.state_dict()[f"model.{name}"])
    assert weights["tower.model.trunk.stages.1.downsample.1.weight.int8"].data_type == onnx.TensorProto.INT8


def test_the_gate_of_int8_asks_more_than_a_few(tmp_path: Path) -> None:
    trained = build("vit")
    trained.info = replace(trained.info, pretrained="as if trained")
    for precision, probes in (
        ("float32", 20),
        ("int8", 20 + len(set(embedded_probes(RANKED)[1]) - set(embedded_probes()[1]))),
    ):
        folder = tmp_path / precision
        folder.mkdir()
        format = make_format("onnx", {"precision": precision})
        format.write(trained, folder)
        (top1,) = (x for x in prove(trained, format, folder, Probes.of()).checks if x.name == "top-1")
        assert top1.inputs == probes
        assert f"of {probes} probes" in top1.bound


def test_int8_that_ranks_otherwise_leaves_nothing(
    vit: Encoder, photos: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coarse(values: np.ndarray[Any, Any], axis: int) -> Any:
        """Three levels a channel instead of 255."""
        steps = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis)).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        return steps, np.rint(values / steps.reshape(shape)).astype(np.int8)

    monkeypatch.setattr("clipkit.exporters.onnx_weights._quantised", coarse)
    trained = build("vit")
    trained.info = replace(trained.info, pretrained="as if trained")
    with pytest.raises(ParityError, match=r"FAIL top-1: same nearest neighbour"):
        export_encoder(trained, OnnxFormat(precision="int8"), tmp_path / "out", images=photos, texts=TEXTS)
    assert not list(tmp_path.iterdir())


def test_load_takes_the_folder(folder: Path, vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    again, notes = load_encoder(folder)
    assert torch.allclose(again.encode_image(photos), vit.encode_image(photos), atol=1e-5)
    assert torch.allclose(again.encode_text(TEXTS), vit.encode_text(TEXTS), atol=1e-5)
    assert again.log_scale == pytest.approx(vit.log_scale)
    assert "onnxruntime" in notes[0]
    with pytest.raises(ValueError, match="no weights to start from"):
        load_pair(str(folder), None)
    with pytest.raises(ValueError, match="holds ONNX files and no weights"):
        export_encoder(again, FORMAT, tmp_path / "again")


def test_bad_files_and_options(folder: Path, tmp_path: Path) -> None:
    for options, said in (
        ({"opset": 17}, "takes no opset=17; 18, 19, 20, 21, 22, 23"),
        ({"opset": 18.0}, "takes no opset=18.0; 18, 19, 20, 21, 22, 23"),
        ({"opset": "18"}, "takes no opset='18'; 18, 19"),
        ({"opset": True}, "takes no opset=True; 18, 19"),
        ({"opset": [18]}, r"takes no opset=\[18\]; 18, 19"),
        ({"tokens": "int8"}, "takes no tokens='int8'; int64, int32"),
        ({"pixels": None}, "takes no pixels=None; float, uint8"),
        ({"colour": 1}, "has no option 'colour'; its options are opset, tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            make_format("onnx", options)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "visual.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"onnxruntime cannot load .*visual.onnx"):
        load_encoder(tmp_path)
    stored = json.loads((tmp_path / "open_clip_config.json").read_text())
    del stored["preprocess_cfg"]["mean"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="preprocess_cfg lacks mean"):
        load_encoder(tmp_path)


def changed(folder: Path, **values: Any) -> None:
    path = folder / "open_clip_config.json"
    stored = json.loads(path.read_text())
    stored["preprocess_cfg"].update(values)
    path.write_text(json.dumps(stored))


def gelu(folder: Path, vit: Encoder) -> None:
    """Same weights, other activation."""
    pair = pair_from_config(CONFIGS["vit"] | {"quick_gelu": False})
    pair.image.load_state_dict(vit.image.state_dict())
    pair.text.load_state_dict(vit.text.state_dict())
    FORMAT.write(Encoder.from_pair(pair, model="flipped", pretrained=None), folder)


def bilinear(folder: Path, vit: Encoder) -> None:
    changed(folder, interpolation="bilinear")


def mean(folder: Path, vit: Encoder) -> None:
    changed(folder, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def end_of_text(folder: Path, vit: Encoder) -> None:
    model = onnx.load(folder / "textual.onnx")
    held = [*model.graph.initializer] + [a.t for n in model.graph.node for a in n.attribute if a.HasField("t")]
    ends = [x for x in held if x.data_type == 7 and not x.dims and int(onnx.numpy_helper.to_array(x)) == 49407]
    assert ends, "the graph pools by no number"
    for x in ends:
        x.CopyFrom(onnx.numpy_helper.from_array(np.array(49406, dtype=np.int64), x.name))
    onnx.save(model, folder / "textual.onnx")


def channels(folder: Path, vit: Encoder) -> None:
    model = onnx.load(folder / "visual.onnx")
    (held,) = [x for x in model.graph.initializer if list(x.dims) == [64, 3, 16, 16]]
    held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held)[:, ::-1].copy(), held.name))
    onnx.save(model, folder / "visual.onnx")


@pytest.mark.parametrize("harm", [gelu, bilinear, mean, end_of_text, channels])
def test_a_wrong_folder_is_caught(
    folder: Path, vit: Encoder, photos: list[Image.Image], tmp_path: Path, harm: Callable[[Path, Encoder], None]
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    probes = Probes.of(photos, TEXTS)
    harm(tmp_path, vit)
    assert not prove(vit, FORMAT, tmp_path, probes).held


def test_two_files_have_two_hashes(folder: Path, tmp_path: Path) -> None:
    """Or one artefact would be given the features and figures of another, out of the cache."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    again = encoder_hashes(load_encoder(tmp_path)[0])
    assert again == encoder_hashes(load_encoder(folder)[0])
    model = onnx.load(tmp_path / "visual.onnx")
    model.metadata_props.add(key="other", value="1")
    onnx.save(model, tmp_path / "visual.onnx")
    assert encoder_hashes(load_encoder(tmp_path)[0])["weights"] != again["weights"]
