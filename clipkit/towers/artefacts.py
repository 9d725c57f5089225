"""Folders of files that another program runs, each kind with what reads it: they embed, and are measured as they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clipkit.towers.immich import immich_pair, is_immich_folder
from clipkit.towers.machine_code import is_machine_code_folder, machine_code_pair
from clipkit.towers.onnx import is_onnx_folder, onnx_pair
from clipkit.towers.open_clip import OpenClipPair
from clipkit.towers.openvino import is_openvino_folder, openvino_pair
from clipkit.towers.program import is_program_folder, program_pair
from clipkit.towers.sentence_transformers import is_sentence_transformers_folder, sentence_transformers_pair
from clipkit.towers.transformers import TransformersModel, is_transformers_folder, transformers_pair


class Artefact(NamedTuple):
    """One kind of folder.

    Args:
        holds: What is in it, in words.
        runs: How it runs, in words.
        here: Whether a folder is one.
        pair: Reads one; where ``code`` says something, the caller has the operator's consent.
        code: What its files can do to whoever loads them; empty where they are data.
        lacks: Why it cannot be trained or exported.
    """

    holds: str
    runs: str
    here: Callable[[Path], bool]
    pair: Callable[[Path], OpenClipPair]
    code: str = ""
    lacks: str = "no weights"


_NAMES = TransformersModel.lacks
ARTEFACTS = (
    Artefact("ONNX files", "onnxruntime on the CPU", is_onnx_folder, onnx_pair),
    Artefact("immich's ONNX files", "onnxruntime on the CPU", is_immich_folder, immich_pair),
    Artefact("OpenVINO files", "OpenVINO on the CPU, in float32", is_openvino_folder, openvino_pair),
    Artefact(
        "AOTInductor packages",
        "a process of its own on the CPU",
        is_machine_code_folder,
        machine_code_pair,
        code="a package is machine code that runs as it stands, whatever whoever wrote it put there",
    ),
    Artefact(
        "torch.export programs",
        "torch on the CPU",
        is_program_folder,
        program_pair,
        code="a .pt2 file can run any code of whoever wrote it",
    ),
    Artefact(
        "a model of sentence-transformers",
        "transformers",
        is_sentence_transformers_folder,
        sentence_transformers_pair,
        lacks=_NAMES,
    ),
    Artefact("a model of transformers", "transformers", is_transformers_folder, transformers_pair, lacks=_NAMES),
)


def artefact_of(path: Path) -> Artefact | None:
    """Which kind of folder it is; None for runs, checkpoints, open_clip's folders and all that is no folder."""
    return next((kind for kind in ARTEFACTS if kind.here(path)), None)
