"""Towers that are programs of torch.export, on the CPU: read with the operator's consent alone, and after a check of each file.

A ``.pt2`` is torch's own format for code: whoever loads one trusts whoever wrote it. No file and no key of a configuration can give consent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.towers.graph_files import Beside, GraphModel
from clipkit.towers.open_clip import OpenClipPair
from clipkit.towers.program_check import checked_archive

IMAGE_FILE, TEXT_FILE = "visual.pt2", "textual.pt2"


def read_program(path: Path) -> Callable[[Tensor], Tensor]:
    """The program of an encoder: its input (B, ...) to embeddings (B, D). The caller has the operator's consent.

    Raises:
        ValueError: If the archive holds more than an encoder needs, or torch cannot read it.
    """
    archive, causes = checked_archive(path), list[object]()
    log = logging.getLogger("torch.export")

    def keep(record: logging.LogRecord) -> bool:
        """Torch logs what went wrong with a traceback, and raises that something did."""
        causes.append(record.exc_info[1] if record.exc_info else record.getMessage())
        return False

    log.addFilter(keep)
    try:
        program = torch.export.load(archive)
        module: Any = program.module(
            check_guards=False
        )  # guards are code; the shapes of inputs are checked all the same
    except Exception as error:  # torch.export raises its own classes and those of everything beneath
        said = str(causes[0] if causes else error) or repr(error)
        raise ValueError(f"torch.export cannot load {path}: {said.splitlines()[0][:300]}") from error
    finally:
        log.removeFilter(keep)
    return module  # type: ignore[no-any-return]


class ProgramModel(GraphModel):
    """One encoder of an exported folder: its input (B, ...) to embeddings (B, D).

    Args:
        path: The ``.pt2`` file.

    Raises:
        ValueError: See ``read_program``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "torch.export program")
        self._run = (read_program(path),)  # in a tuple: no part that another device, type or mode could be given

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of any size, in the arithmetic that was exported."""
        given = x.detach().cpu()
        with torch.autocast("cpu", enabled=False):
            try:
                found = self._run[0](given.float() if given.is_floating_point() else given.long())
            except (RuntimeError, AssertionError) as error:  # a guard of the shape that was exported
                shown = str(error).splitlines()[0][:300]
                raise ValueError(f"{self.place} takes no input of {tuple(x.shape)}: {shown}") from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
            raise ValueError(f"{self.place} is no encoder of images or tokens to embeddings (B, D)")
        return found.to(x.device)


def is_program_folder(path: Path) -> bool:
    """Whether a folder holds programs, whatever their names."""
    return path.is_dir() and any(path.glob("*.pt2"))


def program_pair(folder: Path) -> OpenClipPair:
    """The towers, tokenizer and preprocessing of an exported folder. The caller has the operator's consent.

    Raises:
        ValueError: If a file is missing, or is not what its name says.
    """
    beside = Beside.of(folder, "torch.export program")
    for name in (IMAGE_FILE, TEXT_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: a folder of programs holds {IMAGE_FILE} and {TEXT_FILE}")
    return beside.pair(ProgramModel(folder / IMAGE_FILE), ProgramModel(folder / TEXT_FILE))
