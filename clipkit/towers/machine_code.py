"""Towers that are machine code of AOTInductor, on the CPU: run with the operator's consent alone, in a process of their own.

A package holds a shared library that runs as it stands: nothing in it can be checked, and whoever loads one trusts whoever wrote it. The
process of its own keeps code that does not fit this processor from ending ours; it is no prison.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
import zipfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from clipkit.towers.graph_files import Beside, GraphModel
from clipkit.towers.model_files import own_file
from clipkit.towers.open_clip import OpenClipPair
from clipkit.towers.program import IMAGE_FILE, TEXT_FILE
from clipkit.towers.program_check import PROGRAM

_RECEIVER = """import sys, torch
from safetensors.torch import load_file, save_file
encode = torch._inductor.aoti_load_package(sys.argv[1])
for line in sys.stdin:
    save_file({"y": encode(load_file(line[:-1] + ".in")["x"]).contiguous()}, line[:-1] + ".out")
    print("done", flush=True)
"""


class Receiver:
    """A package in a process that has torch and nothing of clipkit; it ends with this object. The caller has the operator's consent.

    Args:
        path: The ``.pt2`` package.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = tempfile.TemporaryDirectory()
        command, pipe = [sys.executable, "-c", _RECEIVER, str(path)], subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        weakref.finalize(self, _end, self._process, os.getpid())

    def __call__(self, x: Tensor) -> Tensor:
        """Embed a batch (B, ...) on the CPU: (B, D).

        Raises:
            ValueError: If the package cannot be run.
        """
        process, place = self._process, Path(self._place.name) / "batch"
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        save_file({"x": x.cpu().contiguous()}, place.with_suffix(".in"))
        try:
            process.stdin.write(f"{place}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (BrokenPipeError, ValueError):  # the latter where an earlier batch ended it
            answer = ""
        if answer != "done\n":
            said = "" if process.stdin.closed else process.communicate()[1].strip()
            raise ValueError(
                f"{self._path}: the package cannot be run (code {process.returncode}): {' '.join(said.splitlines()[-2:])[:600]}; "
                "it is for one version of torch and one kind of processor: compile it here, or take another export"
            )
        return load_file(place.with_suffix(".out"))["y"]


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() == owner:  # a forked copy must not end it
        process.kill()
        process.wait()


class MachineCodeModel(GraphModel):
    """One encoder of an exported folder: its input (B, ...) to embeddings (B, D).

    Args:
        path: The ``.pt2`` package.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "AOTInductor package")
        self._run = (Receiver(path),)

    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of any size."""
        given = x.detach().cpu()
        found = self._run[0](given.float() if given.is_floating_point() else given.long())
        if found.ndim != 2 or len(found) != len(x):
            raise ValueError(f"{self.place} is no encoder of images or tokens to embeddings (B, D)")
        return found.to(x.device)


def is_machine_code_folder(path: Path) -> bool:
    """Whether a folder holds AOTInductor's packages under the names that the export gives them; their members are listed, not read."""
    return all(_is_package(path / name) for name in (IMAGE_FILE, TEXT_FILE))


def _is_package(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return any("data/aotinductor/" in name for name in names) and not any(name.endswith(PROGRAM) for name in names)


def machine_code_pair(folder: Path) -> OpenClipPair:
    """The towers, tokenizer and preprocessing of an exported folder. The caller has the operator's consent.

    Raises:
        ValueError: If a file is missing, or is not what its name says.
    """
    beside = Beside.of(folder, "AOTInductor package")
    image, text = (MachineCodeModel(own_file(folder, name)) for name in (IMAGE_FILE, TEXT_FILE))
    return beside.pair(image, text)
