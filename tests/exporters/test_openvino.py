"""Files that OpenVINO runs, at any batch size, and a check that catches wrong ones."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from clipkit.encoder import Encoder
from clipkit.exporters.probes import Probes
from clipkit.exporters.prove import export_encoder, prove

from .conftest import TEXTS
from .test_onnx import bilinear

openvino = pytest.importorskip("openvino")
from clipkit.exporters.openvino import IMAGE_FILE, TEXT_FILE, OpenVinoFormat  # noqa: E402

FORMAT = OpenVinoFormat()


def test_openvino_runs_the_files(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export_encoder(vit, FORMAT, out, images=photos, texts=TEXTS)
    assert report.held
    assert {IMAGE_FILE, TEXT_FILE, "open_clip_config.json"} <= {path.name for path in out.iterdir()}
    textual = openvino.Core().compile_model(out / TEXT_FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in (1, 3):
        found = torch.from_numpy(textual(vit.tokenize(TEXTS[:size]).numpy())[0])
        assert torch.allclose(found, vit.encode_text(TEXTS[:size]), atol=1e-5)
    weights = out / IMAGE_FILE.replace(".xml", ".bin")
    data = bytearray(weights.read_bytes())
    at = len(data) // 2 // 4 * 4
    data[at : at + 400] = bytes(400)
    whole = weights.read_bytes()
    weights.write_bytes(bytes(data))
    probes = Probes.of(photos, TEXTS)
    assert not prove(vit, FORMAT, out, probes).held
    weights.write_bytes(whole)
    bilinear(out, vit)
    assert not prove(vit, FORMAT, out, probes).held
