"""Running statistics of batch norms: a forward pass writes them, so that a step which is skipped must put them back.

Features that are not finite leave NaN in them for good (a running mean of NaN stays NaN), and a step that is left out would still move them.
They are copied on the device before the step's forward and chosen by the guard's flag after its backward; nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipkit.towers.towers import NORMS


class BatchStatistics:
    """The running statistics of a module's batch norms; without any, every call costs nothing.

    Args:
        module: Whose norms; those that are in evaluation at a step are none of its.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [child for child in module.modules() if isinstance(child, NORMS) and child.track_running_stats]
        self._kept: list[tuple[list[Tensor], Tensor]] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them: before the forward of a step, once however many micro-batches it has."""
        by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for norm in self._norms:
            for buffer in norm._buffers.values() if norm.training else ():
                if buffer is not None:
                    by_type.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._kept = [(buffers, _flat(buffers)) for buffers in by_type.values()]

    @torch.no_grad()
    def put_back_(self, skipped: Tensor) -> None:
        """Give them the values of the last ``keep`` where the step is skipped.

        Args:
            skipped: Not 0 if it is, a scalar on the device.
        """
        kept, self._kept = self._kept, []
        for buffers, before in kept:
            chosen = torch.where(skipped.to(before.device) != 0, before, _flat(buffers))
            parts = torch.split(chosen, [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])


def _flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
