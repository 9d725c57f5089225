"""Threads of a forward while loader processes decode on the same cores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from clipkit.encoder import Encoder

DECODED = (
    25e6  # floating-point operations that one core does in about the time in which another decodes a picture, 1 ms
)


@contextlib.contextmanager
def beside_workers(encoder: Encoder, workers: int) -> Iterator[None]:
    """Inside, a small image tower on the CPU runs in one thread: its others would wait for a core, layer by layer, and spin meanwhile.

    The choice hangs on the tower's size and ``workers`` alone, never on time, so that the same call gives the same bits.

    Args:
        encoder: The encoder whose image tower runs in the block.
        workers: Processes that decode meanwhile; where one thread would not keep up with them, nothing changes.
    """
    threads = torch.get_num_threads()
    alone = workers > 0 and threads > 1 and encoder.device.type == "cpu" and 0 < _flops(encoder) * workers <= DECODED
    torch.set_num_threads(1 if alone else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _flops(encoder: Encoder) -> int:
    """Floating-point operations for one picture; 0 of a graph that torch does not run."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention in one operation would not be counted
    try:
        with FlopCounterMode(display=False) as counted:
            encoder.encode_image([torch.zeros(3, 8, 8, dtype=torch.uint8)])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counted.get_total_flops())
