"""How many pairs a tower's forward can take: ``trainer.micro_batch: auto``.

Activations that backward needs grow by the sample, so they are counted on a few samples (every tensor that autograd keeps) and held against the
memory that is left. The choice is made once, on all ranks together, and kept with the run: another one would round otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.towers.base import Tower
from clipkit.towers.towers import still

_SPARE = 0.7  # of the memory that is left: fragmentation, temporaries, the loader
_STEP = 8


@dataclass(frozen=True)
class Choice:
    """What was chosen and why.

    Args:
        micro_batch: Pairs of a forward; None for the whole batch at once.
        pairs: Pairs of a rank's batch.
        per_pair: Bytes of activations for a pair.
        available: Bytes that activations may take.
    """

    micro_batch: int | None
    pairs: int
    per_pair: int
    available: int

    def __str__(self) -> str:
        whole, left = self.per_pair * self.pairs / 1e9, self.available / 1e9
        if self.micro_batch is None:
            return f"trainer.micro_batch: auto is off: {self.pairs} pairs a rank keep about {whole:.1f} GB of activations, {left:.1f} are left"
        part = self.per_pair * self.micro_batch / 1e9
        return (
            f"trainer.micro_batch: auto chose {self.micro_batch} of {self.pairs} pairs a rank: about {part:.1f} GB of activations instead of "
            f"{whole:.1f} ({left:.1f} GB are left), for about one more forward"
        )


def choose(
    examples: dict[str, tuple[Tower, Callable[[int], Tensor]]],
    *,
    pairs: int,
    available: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Choice:
    """The largest micro-batch that fits on every rank; all ranks call it together.

    Args:
        examples: Per field its tower and a function that makes so many inputs.
        pairs: Pairs of a rank's batch.
        available: Bytes that activations may take on this rank.
        autocast: The arithmetic of training.

    Raises:
        ValueError: If not even one pair fits.
    """
    per_pair = max(1, sum(activation_bytes(tower, make, autocast) for tower, make in examples.values()))
    fits = available // per_pair
    chosen = min(int(found) for found in distributed.gather_json(fits))
    if chosen < 1:
        raise ValueError(
            f"trainer.micro_batch=auto: one pair needs about {per_pair / 1e6:.0f} MB of activations and {available / 1e6:.0f} MB are left; "
            "take a smaller model or image size, or fewer ranks on this machine"
        )
    if chosen >= pairs:
        return Choice(None, pairs, per_pair, available)
    return Choice(max(1, chosen // _STEP * _STEP or chosen), pairs, per_pair, available)


def activation_bytes(
    tower: Tower, make: Callable[[int], Tensor], autocast: Callable[[], AbstractContextManager[object]]
) -> int:
    """Bytes that autograd keeps for one more sample of a tower's forward; 0 for a locked tower."""
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        return 0
    few, more = (_kept(tower, make(count), autocast) for count in (2, 4))
    return max(0, more - few) // 2


def _kept(tower: Tower, x: Tensor, autocast: Callable[[], AbstractContextManager[object]]) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    kept: dict[int, Tensor] = {}  # held, so that no address is given twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.random.fork_rng(), still(tower), autocast(), hooks:
        tower(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def memory_left(device: torch.device, *, ranks_here: int, parameters: int, features: int) -> int:
    """Bytes that activations may take on this rank, beside what the optimiser and the loss will need.

    Args:
        device: Where the towers are.
        ranks_here: Ranks of this machine, which share the memory of its CPU.
        parameters: Bytes of the trainable parameters; gradients and two moments are still to come.
        features: Bytes of one field's features over all ranks; the loss holds about six of them.
    """
    if device.type == "cuda":
        free = (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    else:
        free = _free_memory() // ranks_here
    return max(0, int(_SPARE * (free - 3 * parameters - 6 * features)))


def _free_memory() -> int:
    """Memory that this process may still take: the system's, or less if its control group says so."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        pages = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        pages = min(pages, int(limit.read_text()) - int(used.read_text()))
    return max(0, pages)
