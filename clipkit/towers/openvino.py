"""Towers that are files of OpenVINO's intermediate representation, in OpenVINO on the CPU.

A stranger's file is data to it: the graph and the weights are handed over as bytes, so nothing in them can name another file, and no
extension is loaded. https://docs.openvino.ai/2025/documentation/openvino-ir-format.html
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.config.names import DISTRIBUTION
from clipkit.towers.graph_files import Beside, GraphModel
from clipkit.towers.model_files import own_file
from clipkit.towers.open_clip import OpenClipPair

IMAGE_FILE, TEXT_FILE = "openvino_model_vision.xml", "openvino_model_text.xml"  # as optimum-intel calls them
PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}  # else a CPU with bf16 units rounds to those
_NUMBERS = {"f32": np.float32, "i64": np.int64, "i32": np.int32}


@cache
def core() -> Any:
    """The one core of this process, for its whole life.

    The CPU plugin gives the thread that loads it another stack for signals, and puts the one of before back when it goes. Two that go in
    the order in which they came put back memory that is gone, and the next signal with a handler (a child's end, say) ends the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoModel(GraphModel):
    """One encoder of an exported folder: its input (B, ...) to embeddings (B, D), in float32.

    Args:
        path: The ``.xml`` file; its weights lie beside it in ``.bin``.

    Raises:
        ValueError: If openvino is missing or cannot load the files, or they are no encoder of one input and one output.
    """

    def __init__(self, path: Path) -> None:
        weights = own_file(path.parent, path.with_suffix(".bin").name)
        super().__init__(own_file(path.parent, path.name), "OpenVINO file", [weights])
        if importlib.util.find_spec("openvino") is None:
            raise ValueError(f"{path} needs openvino: pip install '{DISTRIBUTION}[openvino]'")
        graph = path.read_bytes()
        if not graph.lstrip().startswith((b"<?xml", b"<net")):  # else OpenVINO tries the readers of other formats
            raise ValueError(f"{path} is no OpenVINO file (XML); export the model again")
        options = PRECISE | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            self.compiled: Any = core().compile_model(core().read_model(graph, weights.read_bytes()), "CPU", options)
        except Exception as error:  # openvino raises RuntimeError, and what lies beneath it
            said = " ".join(str(error).split())[-300:]
            raise ValueError(f"OpenVINO cannot load {path}: {said}; export the model again") from error
        inputs, outputs = self.compiled.inputs, self.compiled.outputs
        kinds = [x.element_type.get_type_name() for x in inputs]
        if len(inputs) != 1 or len(outputs) != 1 or kinds[0] not in _NUMBERS:
            raise ValueError(
                f"{path} is no encoder of images or tokens to embeddings; inputs: {kinds}, outputs: {len(outputs)}"
            )
        self.number = _NUMBERS[kinds[0]]

    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of any size."""
        if x.is_floating_point() != np.issubdtype(self.number, np.floating):
            raise ValueError(f"{self.place} takes {self.number.__name__}, not {x.dtype}")
        try:
            found = self.compiled(x.detach().cpu().numpy().astype(self.number))[0].copy()
        except RuntimeError as error:
            said = " ".join(str(error).split())[-300:]
            raise ValueError(f"{self.place} takes no input of {tuple(x.shape)}: {said}") from error
        if found.ndim != 2 or len(found) != len(x):
            raise ValueError(f"{self.place} is no encoder of images or tokens to embeddings (B, D)")
        return torch.from_numpy(found).to(x.device)


def is_openvino_folder(path: Path) -> bool:
    """Whether a folder holds OpenVINO's files under optimum-intel's names."""
    return path.is_dir() and any(path.glob("openvino_*.xml"))


def openvino_pair(folder: Path) -> OpenClipPair:
    """The towers, tokenizer and preprocessing of an exported folder.

    Raises:
        ValueError: If a file is missing, or is not what its name says.
    """
    beside = Beside.of(folder, "OpenVINO file")
    return beside.pair(OpenVinoModel(folder / IMAGE_FILE), OpenVinoModel(folder / TEXT_FILE))
