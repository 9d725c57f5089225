"""What this machine computes on."""

from __future__ import annotations

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
