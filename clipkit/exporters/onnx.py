"""ONNX: the image and the text encoder as two files, with the configuration that raw inputs need.

Inputs and outputs are named, embeddings have unit norm, and any batch size is taken unless a preset says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.exporters import onnx_graph, onnx_weights
from clipkit.exporters.beside import USAGE, read_beside, refuse, write_beside
from clipkit.exporters.candidate import Candidate, Precision
from clipkit.exporters.embedders import (
    example_image,
    example_text,
    image_embedder,
    text_embedder,
)
from clipkit.towers.onnx import IMAGE_FILE, TEXT_FILE, OnnxModel

Opset = Literal[18, 19, 20, 21, 22, 23]  # what torch's exporter writes and onnxruntime runs


@dataclass(frozen=True)
class OnnxFormat:
    """``visual.onnx`` and ``textual.onnx``.

    Args:
        opset: Of the standard operators, 18 to 23.
        tokens: Integers that the text encoder takes.
        pixels: ``float`` (normalised by the receiver) or ``uint8`` (resized RGB; the graph normalises).
        precision: Of the stored weights; arithmetic is ``float32`` throughout. ``int8`` leaves embeddings and norms as they are.
    """

    opset: Opset = 18
    tokens: Literal["int64", "int32"] = "int64"
    pixels: Literal["float", "uint8"] = "float"
    precision: Precision = "float32"

    name: ClassVar[str] = "onnx"

    @property
    def usage(self) -> str:
        """Through onnxruntime, with what these options ask of the receiver."""
        beside, image, text = USAGE, "preprocess(picture)[None]", 'tokenizer(["a red bicycle"])'
        if self.pixels == "uint8":
            beside = beside.replace("**config)", '**config | {"mean": (0, 0, 0), "std": (1, 1, 1)})')
            image = f"({image} * 255).round().byte()"  # resized RGB: the graph normalises
        text = f"{text}.int()" if self.tokens == "int32" else text
        return f"""import json, onnxruntime, open_clip
{beside}
visual, textual = (onnxruntime.InferenceSession(f"FOLDER/{{name}}.onnx") for name in ("visual", "textual"))
image = visual.run(None, {{"image": {image}.numpy()}})[0]  # (1, D), unit norm
text = textual.run(None, {{"text": {text}.numpy()}})[0]  # (1, D), unit norm"""

    def refuse(self, encoder: Encoder) -> None:
        """What holds no weights, or a tokenizer that cannot be saved."""
        refuse(encoder, self.name)

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write both encoders, ``open_clip_config.json`` and the tokenizer."""
        write_beside(encoder, folder)
        dtype = {"int64": torch.int64, "int32": torch.int32}[self.tokens]
        image = example_image(encoder, 2, uint8=self.pixels == "uint8")
        for embedder, example, names, file in (
            (image_embedder(encoder), image, ("image", "features"), IMAGE_FILE),
            (text_embedder(encoder), example_text(encoder, 2, dtype), ("text", "features"), TEXT_FILE),
        ):
            graph = onnx_graph.trace(embedder, example, opset=self.opset, names=names, static=False)
            kept = 0 if self.precision == "float32" else onnx_weights.pack(graph, self.precision)
            facts = {"clipkit.precision": self.precision, "clipkit.kept_float32": str(kept)}
            onnx_graph.save(graph, folder / file, facts)

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through onnxruntime, with open_clip's preprocessing and tokenizer out of the configuration beside."""
        beside = read_beside(folder)
        image, text = OnnxModel(folder / IMAGE_FILE), OnnxModel(folder / TEXT_FILE)
        uint8 = image.number.__name__ == "uint8"
        mean, std = (torch.tensor(beside.options[name]).view(3, 1, 1) for name in ("mean", "std"))

        def raw_image(images: Sequence[Image.Image]) -> Tensor:
            pixels = torch.stack([beside.preprocess(x) for x in images])
            found: Tensor = image(((pixels * std + mean) * 255).round().to(torch.uint8) if uint8 else pixels)
            return found

        return Candidate(
            image=image,
            text=text,
            raw_image=raw_image,
            raw_text=lambda texts: text(beside.tokenize(list(texts))),
            precision=cast(Precision, image.facts["clipkit.precision"]),
            takes="uint8" if uint8 else "float",
            temperature=beside.temperature,
            versions={name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")},
            said=("onnxruntime ran on the CPU", *_packed(image, text)),
        )


FORMAT = OnnxFormat


def _packed(image: OnnxModel, text: OnnxModel) -> tuple[str, ...]:
    """What became of the weights, where they were packed."""
    precision = image.facts["clipkit.precision"]
    if precision == "float32":
        return ()
    kept = sum(int(model.facts["clipkit.kept_float32"]) for model in (image, text))
    return (f"weights are stored as {precision}, {kept} large ones as float32; arithmetic is float32",)
