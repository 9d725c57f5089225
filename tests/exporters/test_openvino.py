"""Files that OpenVINO runs, at any batch size, and a check that catches wrong ones."""

import ctypes
import gc
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
from clipkit.towers.openvino import OpenVinoModel, core  # noqa: E402

FORMAT = OpenVinoFormat()


def signal_stack() -> int:
    """Where this thread's handlers of signals run; 0: no place of their own."""

    class Stack(ctypes.Structure):
        _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.place or 0


def mapped(address: int) -> bool:
    """Whether the process has memory there."""
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return any(int(first, 16) <= address < int(end, 16) for first, end in ranges)


def test_loading_twice_leaves_handlers_of_signals_their_stack(tmp_path: Path) -> None:
    node = openvino.opset13.parameter([1, 2], float)
    openvino.save_model(openvino.Model([openvino.opset13.relu(node)], [node]), tmp_path / "relu.xml")
    first = OpenVinoModel(tmp_path / "relu.xml")
    second = OpenVinoModel(tmp_path / "relu.xml")
    del first
    assert second(torch.tensor([[-1.0, 2.0]])).tolist() == [[0, 2]]
    del second
    gc.collect()
    assert signal_stack() == 0 or mapped(signal_stack())


def test_openvino_runs_the_files(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export_encoder(vit, FORMAT, out, images=photos, texts=TEXTS)
    assert report.held
    assert {IMAGE_FILE, TEXT_FILE, "open_clip_config.json"} <= {path.name for path in out.iterdir()}
    textual = core().compile_model(out / TEXT_FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
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
