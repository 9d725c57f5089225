"""What this machine computes on."""

from __future__ import annotations

import os

import torch

from clipkit.config import RunConfig


def devices_here(config: RunConfig) -> int:
    """What ``devices: auto`` means without a launcher: this machine's GPUs, or one process on CPU."""
    return torch.cuda.device_count() if uses_gpu(config) else 1


def uses_gpu(config: RunConfig) -> bool:
    """Whether the run computes on GPUs.

    Raises:
        ValueError: If it asks for GPUs and there is none.
    """
    wanted, present = config.trainer.accelerator, torch.cuda.is_available()
    if wanted == "gpu" and not present:
        raise ValueError(
            "trainer.accelerator=gpu, but torch sees no CUDA device here; use cpu or auto, or install a CUDA build of torch"
        )
    return present and wanted != "cpu"


def pick_device(wanted: str) -> str:
    """The device of this process for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; of several ranks on a machine each has its own GPU.

    Raises:
        ValueError: If it is none of those, or not here.
    """
    if wanted not in ("auto", "cpu", "cuda") and not wanted.startswith("cuda:"):
        raise ValueError(f"--device {wanted}: take auto, cpu, cuda or cuda:N")
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            f"--device {wanted}: torch sees no CUDA device here; use cpu, or install a CUDA build of torch"
        )
    number = int(os.environ.get("LOCAL_RANK", "0")) if ":" not in wanted else int(wanted.partition(":")[2])
    if number >= torch.cuda.device_count():
        raise ValueError(f"--device {wanted}: no GPU {number} here, there are {torch.cuda.device_count()}")
    return f"cuda:{number}"
