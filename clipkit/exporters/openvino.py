"""OpenVINO: both encoders as its intermediate representation, read from the ONNX graphs, for Intel's CPUs and GPUs.

Read by ``Core.read_model`` and not by ``openvino.convert_model``, which counts its users over the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.exporters.beside import USAGE, read_beside, refuse, write_beside
from clipkit.exporters.candidate import Candidate
from clipkit.exporters.onnx import OnnxFormat
from clipkit.towers.onnx import IMAGE_FILE as IMAGE_GRAPH
from clipkit.towers.onnx import TEXT_FILE as TEXT_GRAPH
from clipkit.towers.openvino import IMAGE_FILE, TEXT_FILE, OpenVinoModel, core


@dataclass(frozen=True)
class OpenVinoFormat:
    """``openvino_model_vision.xml`` and ``openvino_model_text.xml`` with their ``.bin``, float32, any batch size."""

    name: ClassVar[str] = "openvino"
    usage: ClassVar[str] = f"""import json, openvino, open_clip
{USAGE}
core, exact = openvino.Core(), {{"INFERENCE_PRECISION_HINT": "f32"}}
visual, textual = (core.compile_model(f"FOLDER/openvino_model_{{name}}.xml", "CPU", exact) for name in ("vision", "text"))
image = visual(preprocess(picture)[None].numpy())[0]       # (1, D), unit norm
text = textual(tokenizer(["a red bicycle"]).numpy())[0]    # (1, D), unit norm"""

    def refuse(self, encoder: Encoder) -> None:
        """What holds no weights, or a tokenizer that cannot be saved."""
        refuse(encoder, self.name)

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write both encoders, ``open_clip_config.json`` and the tokenizer."""
        import openvino

        write_beside(encoder, folder)
        with tempfile.TemporaryDirectory() as name:
            OnnxFormat().write(encoder, Path(name))
            for graph, file in ((IMAGE_GRAPH, IMAGE_FILE), (TEXT_GRAPH, TEXT_FILE)):
                openvino.save_model(core().read_model(Path(name) / graph), folder / file, compress_to_fp16=False)

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through OpenVINO on the CPU, in float32, with open_clip's preprocessing and tokenizer."""
        beside = read_beside(folder)
        image, text = OpenVinoModel(folder / IMAGE_FILE), OpenVinoModel(folder / TEXT_FILE)

        def raw_image(images: Sequence[Image.Image]) -> Tensor:
            found: Tensor = image(torch.stack([beside.preprocess(x) for x in images]))
            return found

        return Candidate(
            image=image,
            text=text,
            raw_image=raw_image,
            raw_text=lambda texts: text(beside.tokenize(list(texts))),
            temperature=beside.temperature,
            versions={name: version(name) for name in ("openvino", "open_clip_torch")},
            said=(
                "OpenVINO ran on the CPU in float32; by itself it takes bfloat16 where the processor has it, which was not compared",
            ),
        )


FORMAT = OpenVinoFormat
