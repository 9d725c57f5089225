"""Towers that are ONNX files, in onnxruntime on the CPU.

A stranger's file is data to onnxruntime: it runs the operators that it knows, and no code, pickle or library out of the file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.config.names import DISTRIBUTION
from clipkit.towers.base import Features, unit
from clipkit.towers.graph_files import Beside, GraphModel
from clipkit.towers.open_clip import ImageTower, OpenClipPair

IMAGE_FILE, TEXT_FILE = "visual.onnx", "textual.onnx"
_NUMBERS = {
    "tensor(float)": np.float32,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxModel(GraphModel):
    """One encoder of an exported folder: its input (B, ...) to embeddings (B, D).

    Args:
        path: The file; weights beyond 2 GB lie beside it.
        others: Further files that decide what it gives.

    Raises:
        ValueError: If onnxruntime is missing or cannot load the file, or it is no encoder of one input (and a padding mask) and one output.
    """

    def __init__(self, path: Path, others: Sequence[Path] = ()) -> None:
        super().__init__(path, "ONNX file", others)
        if importlib.util.find_spec("onnxruntime") is None:
            raise ValueError(f"{path} needs onnxruntime: pip install '{DISTRIBUTION}[onnx]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes, of no common base but this one
            raise ValueError(f"onnxruntime cannot load {path}: {error}") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.masked = len(inputs) == 2 and inputs[1].name == "attention_mask"
        if len(inputs) != 1 + self.masked or len(outputs) != 1 or inputs[0].type not in _NUMBERS:
            found = ", ".join(f"{x.name} {x.type}" for x in (*inputs, *outputs))
            raise ValueError(f"{path} is no encoder of images or tokens to embeddings; its inputs and outputs: {found}")
        self.shape = tuple(inputs[0].shape)  # a name where a size is free
        self.number = _NUMBERS[inputs[0].type]
        self.facts: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    @property
    def batch(self) -> int | None:
        """The only batch size that the file takes, or None if it takes any."""
        return self.shape[0] if isinstance(self.shape[0], int) else None

    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of any size: a file of fixed batch gets its own, the last filled up by its last input."""
        if x.is_floating_point() != np.issubdtype(self.number, np.floating):
            raise ValueError(f"{self.place} takes {self.number.__name__}, not {x.dtype}")
        given = x.detach().cpu().numpy().astype(self.number)
        if given.shape[1:] != self.shape[1:]:
            raise ValueError(f"{self.place} takes inputs of {self.shape}, not {given.shape}")
        size = self.batch or len(given)
        parts = [self._run(given[start : start + size], size) for start in range(0, len(given), size)]
        return torch.from_numpy(np.concatenate(parts)).to(x.device)

    def _run(self, given: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
        filled = np.concatenate([given, np.repeat(given[-1:], size - len(given), axis=0)])
        names = [x.name for x in self.session.get_inputs()]
        values = {names[0]: filled}
        if self.masked:
            values[names[1]] = (filled != 0).astype(self.number)
        found: np.ndarray[Any, Any] = self.session.run(None, values)[0][: len(given)]
        return found


class OnnxImageTower(ImageTower):
    """An image tower of a file that takes either normalised floats or uint8 pixels."""

    def forward(self, x: Tensor) -> Features:
        """Encode images: uint8 (B, 3, H, W), or floats that are normalised already."""
        if self.model.number is not np.uint8:
            return super().forward(x)
        if x.dtype != torch.uint8:
            x = (x * self.std + self.mean).round().clamp(0, 255).to(torch.uint8)
        return Features(unit(self.model(x)))


def is_onnx_folder(path: Path) -> bool:
    """Whether a folder holds both encoders under the names that the export gives them."""
    return (path / IMAGE_FILE).is_file() and (path / TEXT_FILE).is_file()


def onnx_pair(folder: Path) -> OpenClipPair:
    """The towers, tokenizer and preprocessing of an exported folder.

    Raises:
        ValueError: If a file is missing, or is not what its name says.
    """
    beside = Beside.of(folder, "ONNX file")
    return beside.pair(OnnxModel(folder / IMAGE_FILE), OnnxModel(folder / TEXT_FILE), OnnxImageTower)
