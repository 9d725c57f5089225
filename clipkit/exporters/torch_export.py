"""torch.export: the image and the text encoder as two programs, for torch without clipkit or open_clip's model code.

A ``.pt2`` file must come from someone you trust: ``torch.export.load`` unpickles parts of it and evaluates expressions out of
it. ``clipkit.load`` takes one only with ``trust_code=True``.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from clipkit.encoder import Encoder
from clipkit.exporters.beside import USAGE, read_beside, refuse, write_beside
from clipkit.exporters.candidate import Candidate
from clipkit.exporters.embedders import (
    Embedder,
    example_image,
    example_text,
    image_embedder,
    quiet_tracing,
    text_embedder,
)
from clipkit.towers.program import IMAGE_FILE, TEXT_FILE, read_program


@dataclass(frozen=True)
class TorchExportFormat:
    """``visual.pt2`` and ``textual.pt2``, which ``torch.export.load`` takes; any batch size, on the CPU."""

    name: ClassVar[str] = "torch_export"
    usage: ClassVar[str] = f"""import json, open_clip, torch
{USAGE}
visual, textual = (torch.export.load(f"FOLDER/{{name}}.pt2").module() for name in ("visual", "textual"))
image = visual(preprocess(picture)[None])        # (1, D), unit norm
text = textual(tokenizer(["a red bicycle"]))     # (1, D), unit norm"""

    def refuse(self, encoder: Encoder) -> None:
        """What holds no weights, or a tokenizer that cannot be saved."""
        refuse(encoder, self.name)

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write both programs, ``open_clip_config.json`` and the tokenizer."""
        write_beside(encoder, folder)
        _save(image_embedder(encoder), example_image(encoder, 2), folder / IMAGE_FILE)
        _save(text_embedder(encoder), example_text(encoder, 2, torch.int64), folder / TEXT_FILE)

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through ``torch.export.load``, on the CPU, held to what ``clipkit.load`` takes; with open_clip's preprocessing and tokenizer."""
        image, text = (read_program(folder / name) for name in (IMAGE_FILE, TEXT_FILE))
        beside = read_beside(folder)
        return Candidate(
            image=image,
            text=text,
            raw_image=lambda images: image(torch.stack([beside.preprocess(x) for x in images])),
            raw_text=lambda texts: text(beside.tokenize(list(texts))),
            temperature=beside.temperature,
            versions={"open_clip_torch": version("open_clip_torch")},
            said=(
                "the programs ran on the CPU",
                "torch.export.load runs code that a .pt2 file holds: take such files from people you trust alone",
            ),
        )


FORMAT = TorchExportFormat


def trace(embedder: Embedder, example: Tensor) -> ExportedProgram:
    """The program of an embedder, of any batch size.

    Args:
        embedder: A tower.
        example: Its input, a batch of two.

    Raises:
        ValueError: If torch cannot trace the tower.
    """
    try:
        with quiet_tracing(), torch.no_grad():
            program = torch.export.export(embedder, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # torch.export raises its own classes and those of everything beneath
        kind = type(getattr(embedder.tower, "model", embedder.tower)).__name__
        raise ValueError(f"torch.export cannot trace the tower {kind}: {str(error)[:600]}") from error
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # paths of the building machine
    return program


def _save(embedder: Embedder, example: Tensor, path: Path) -> None:
    program = trace(embedder, example)
    program.example_inputs = None  # stored as a pickle
    whole = io.BytesIO()  # torch's own writer ends the process where the disk is full
    with quiet_tracing():  # weights in channels-last order are stored whole, though torch warns of them
        torch.export.save(program, whole)
    path.write_bytes(whole.getbuffer())
