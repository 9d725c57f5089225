"""Replicas that drifted apart: ranks of a data-parallel run hold equal bits, or something is broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from clipkit import distributed
from clipkit.towers.towers import NORMS

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def replicated(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What every rank should hold with equal bits after a step: weights and buffers, but for running statistics of batch norms."""
    yield from module.named_parameters()
    norms = {name for name, child in module.named_modules() if isinstance(child, NORMS)}
    yield from ((name, x) for name, x in module.named_buffers() if name.rpartition(".")[0] not in norms)


def checksums(named: Iterable[tuple[str, Tensor]]) -> tuple[list[str], Tensor]:
    """The sum of each tensor's bits read as integers (T,), which any single change moves; tensors spread over ranks are left out."""
    found = [(name, x.detach()) for name, x in named if not distributed.is_spread(x)]
    sums = [x.contiguous().view(_INTEGERS[x.element_size()]).sum(dtype=torch.int64) for _, x in found]
    return [name for name, _ in found], torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


def disagreement(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Which ranks hold other bits than most, and in which tensors; None where all agree. All ranks call it together; waits for the device."""
    names, mine = checksums(named)
    if distributed.world_size() == 1 or not names:
        return None
    everyone = [tuple(part.tolist()) for part in distributed.all_gather_variable(mine)]
    if len(set(everyone)) == 1:
        return None
    usual, votes = Counter(everyone).most_common(1)[0]
    first = next(i for i in range(len(names)) if len({sums[i] for sums in everyone}) > 1)
    if 2 * votes > len(everyone):
        odd = [str(rank) for rank, sums in enumerate(everyone) if sums != usual]
        return f"rank {', '.join(odd)} holds other bits than the {votes} ranks that agree, the first in {names[first]}"
    return (
        f"ranks {', '.join(map(str, range(len(everyone))))} hold other bits (no majority), the first in {names[first]}"
    )
