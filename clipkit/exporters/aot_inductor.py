"""AOTInductor: both encoders as machine code for this kind of machine, for torch without Python's model code.

A ``.pt2`` package holds a shared library: load only files of people you trust. It was compared in a process of its own, since machine
code that does not fit a processor ends its process.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.exporters import embedders
from clipkit.exporters.beside import USAGE, read_beside, refuse, write_beside
from clipkit.exporters.candidate import Candidate
from clipkit.exporters.torch_export import trace
from clipkit.towers.machine_code import Receiver
from clipkit.towers.program import IMAGE_FILE, TEXT_FILE


@dataclass(frozen=True)
class AotInductorFormat:
    """``visual.pt2`` and ``textual.pt2``, which ``torch._inductor.aoti_load_package`` takes; any batch size, on the CPU."""

    name: ClassVar[str] = "aot_inductor"
    usage: ClassVar[str] = f"""import json, open_clip, torch
{USAGE}
visual, textual = (torch._inductor.aoti_load_package(f"FOLDER/{{name}}.pt2") for name in ("visual", "textual"))
image = visual(preprocess(picture)[None])        # (1, D), unit norm
text = textual(tokenizer(["a red bicycle"]))     # (1, D), unit norm"""

    def refuse(self, encoder: Encoder) -> None:
        """What holds no weights, a tokenizer that cannot be saved, or a machine without a C++ compiler."""
        refuse(encoder, self.name)
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise ValueError(f"{self.name} needs a C++ compiler: install g++, or export torch_export instead")

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Compile both encoders; write ``open_clip_config.json`` and the tokenizer."""
        write_beside(encoder, folder)
        _compile(embedders.image_embedder(encoder), embedders.example_image(encoder, 2), folder / IMAGE_FILE)
        _compile(embedders.text_embedder(encoder), embedders.example_text(encoder, 2, torch.int64), folder / TEXT_FILE)

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through ``aoti_load_package`` in processes of their own, on the CPU, with open_clip's preprocessing and tokenizer."""
        beside = read_beside(folder)
        image, text = Receiver(folder / IMAGE_FILE), Receiver(folder / TEXT_FILE)
        bound = f"torch {version('torch')}, {platform.system()} {platform.machine()} and this processor's instructions"
        return Candidate(
            image=image,
            text=text,
            raw_image=lambda images: image(torch.stack([beside.preprocess(x) for x in images])),
            raw_text=lambda texts: text(beside.tokenize(list(texts))),
            temperature=beside.temperature,
            versions={"open_clip_torch": version("open_clip_torch")},
            said=(
                f"machine code, for {bound}; elsewhere compile anew, or take torch_export",
                "the packages name folders of the machine that compiled them; take such files from people you trust alone",
            ),
        )


FORMAT = AotInductorFormat


def _compile(embedder: embedders.Embedder, example: Tensor, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    program = trace(embedder, example)
    try:
        with embedders.quiet_tracing(), torch.no_grad():
            aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # of the compiler and everything beneath
        kind = type(getattr(embedder.tower, "model", embedder.tower)).__name__
        raise ValueError(f"AOTInductor cannot compile the tower {kind}: {str(error)[:600]}") from error
