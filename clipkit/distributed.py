"""Ranks and their collectives: the only importer of ``torch.distributed``.

Every function also works in one process without a process group, where there is one rank, 0. Shapes: B_r rows on rank
r, any trailing dimensions. Nothing here pickles: objects travel as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipkit.waits import waiting

T = TypeVar("T")
_REDUCE = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


_ALONE = False


def is_initialized() -> bool:
    """Whether a process group exists (and this process is not ``alone``)."""
    return not _ALONE and dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is rank 0 of 1 and talks to nobody: for the reference that a group is held against."""
    global _ALONE
    before, _ALONE = _ALONE, True
    try:
        yield
    finally:
        _ALONE = before


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if is_initialized() else 1


def launched() -> bool:
    """Whether torchrun (or a launcher that sets its variables) started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


def adopt_srun(environment: MutableMapping[str, str]) -> None:
    """Under ``srun`` with several tasks, set the variables that torchrun sets, so that all tasks are one training.

    The batch script itself also sees SLURM's variables; only a step of several tasks (``SLURM_STEP_NUM_TASKS``) is a launcher.
    """
    if "WORLD_SIZE" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    world, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    first = re.sub(r"\[(\d+).*?\]", r"\1", environment["SLURM_STEP_NODELIST"].split(",")[0], count=1)
    environment.update(
        {
            "RANK": environment["SLURM_PROCID"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world // nodes),
            "MASTER_ADDR": environment.get("MASTER_ADDR", first),
            "MASTER_PORT": environment.get("MASTER_PORT", str(15000 + int(environment["SLURM_JOB_ID"]) % 20000)),
        }
    )


def launcher_world() -> tuple[int, int]:
    """Ranks a node and nodes that the launcher set, ``(1, 1)`` without one."""
    if not launched():
        return 1, 1
    world = int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return local, max(1, world // local)


def launcher_rank() -> int:
    """This process's rank as the launcher set it, known before a process group exists."""
    return int(os.environ.get("RANK", "0")) if launched() else 0


_TIMEOUT = timedelta(minutes=30)
_CPU_GROUPS: list[Any] = []


def init(world: int, *, gpu: bool, timeout: float = _TIMEOUT.total_seconds()) -> None:
    """Make the process group that the launcher's variables describe, before anything needs to agree; nothing to do for one rank.

    Args:
        world: How many ranks there are.
        gpu: Whether they compute on GPUs.
        timeout: Seconds that a collective may take, until ``set_timeout``.
    """
    if world == 1 or is_initialized():
        return
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout))


def set_timeout(seconds: float) -> None:
    """Seconds that collectives from now on may take, in the group of all ranks and in the CPU's; nothing for one rank."""
    if world_size() > 1:
        # public since torch 2.14; before, the same function had a private name
        change: Any = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        for group in (dist.group.WORLD, *_CPU_GROUPS):
            change(timedelta(seconds=seconds), group)


def on_rank_0(action: Callable[[], None]) -> None:
    """Run ``action`` on rank 0; a ``ValueError`` of it is raised on every rank."""
    message = ""
    if rank() == 0:
        try:
            action()
        except ValueError as error:
            message = str(error)
            if world_size() == 1:
                raise
    message = gather_json(message)[0]
    if message:
        raise ValueError(message)


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_(x: Tensor, op: Literal["sum", "max", "min"] = "sum") -> Tensor:
    """Reduce ``x`` over ranks in place and return it."""
    if world_size() > 1:
        with waiting():
            dist.all_reduce(x, op=_REDUCE[op])
    return x


def broadcast_int(value: int, src: int = 0) -> int:
    """The value that rank ``src`` passed, on every rank."""
    if world_size() == 1:
        return value
    x = torch.tensor([value], dtype=torch.int64, device=_device())
    dist.broadcast(x, src=src)
    return int(x.item())


def gather_sizes(rows: int, device: torch.device | None = None) -> list[int]:
    """How many rows each rank has, in rank order."""
    if world_size() == 1:
        return [rows]
    mine = torch.tensor([rows], dtype=torch.int64, device=device or _device())
    sizes = [torch.empty_like(mine) for _ in range(world_size())]
    with waiting():
        dist.all_gather(sizes, mine)
    return [int(size) for size in torch.cat(sizes).tolist()]


class Pending(Generic[T]):
    """Collectives under way.

    Args:
        works: What to wait for, or None.
        finish: Gives the result once that is done.
    """

    def __init__(self, works: Sequence[Any] | None, finish: Callable[[], T]) -> None:
        self._works = works or ()
        self._finish = finish

    def wait(self) -> T:
        """The result; on a GPU its stream waits, not the process."""
        if self._works:
            with waiting():
                for work in self._works:
                    work.wait()
        return self._finish()


def _named(new: str, old: str) -> Any:
    """A collective by its name since torch 2.14, or the one that it had."""
    return getattr(dist, new, None) or getattr(dist, old)


def all_gather_rows_async(x: Tensor, sizes: Sequence[int]) -> Pending[Tensor]:
    """Start ``all_gather_rows``; do something else before ``wait()``."""
    if world_size() == 1:
        return Pending(None, lambda: x)
    longest = max(sizes)
    if len(set(sizes)) == 1:
        out = x.new_empty((longest * len(sizes), *x.shape[1:]))
        return Pending(
            [_named("all_gather_single", "all_gather_into_tensor")(out, x.contiguous(), async_op=True)], lambda: out
        )
    padded = x.new_zeros((longest, *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    work = dist.all_gather(parts, padded, async_op=True)
    return Pending([work], lambda: torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]))


def all_gather_rows(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all ranks in rank order, without a gradient.

    Args:
        x: This rank's rows (B_r, ...), contiguous or not.
        sizes: Rows of each rank, as ``gather_sizes`` returns them.

    Returns:
        (sum of sizes, ...).
    """
    return all_gather_rows_async(x, sizes).wait()


def all_gather_variable(x: Tensor) -> list[Tensor]:
    """Each rank's rows (B_r, ...), which may differ in number, without a gradient."""
    sizes = gather_sizes(len(x), x.device)
    return list(torch.split(all_gather_rows(x, sizes), sizes))


def reduce_scatter_rows_async(x: Tensor, sizes: Sequence[int]) -> Pending[Tensor]:
    """Start ``reduce_scatter_rows``; ``x`` must not be touched before ``wait()``."""
    if world_size() == 1:
        return Pending(None, lambda: x)
    if dist.get_backend() == "nccl" and len(set(sizes)) == 1:
        out = x.new_empty((sizes[0], *x.shape[1:]))
        return Pending(
            [_named("reduce_scatter_single", "reduce_scatter_tensor")(out, x.contiguous(), async_op=True)], lambda: out
        )
    # gloo has no reduce-scatter
    return Pending([dist.all_reduce(x, async_op=True)], lambda: torch.split(x, list(sizes))[rank()])


def reduce_scatter_rows(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum ``x`` (sum of sizes, ...) over ranks and keep this rank's rows (B_r, ...)."""
    return reduce_scatter_rows_async(x, sizes).wait()


def pass_on(tensors: Sequence[Tensor], into: Tensor | None = None) -> Pending[list[Tensor]]:
    """Send contiguous tensors, of the same shapes on every rank, to the next rank of the ring; what comes is the rank before's.

    Args:
        tensors: What goes.
        into: Memory that nobody needs, of the first tensor's shape: the first that comes is put there.
    """
    if world_size() == 1:
        return Pending(None, lambda: list(tensors))
    after, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    received = [into if into is not None and x is tensors[0] else torch.empty_like(x) for x in tensors]
    sends = [dist.P2POp(dist.isend, x, after) for x in tensors]
    receives = [dist.P2POp(dist.irecv, x, before) for x in received]
    return Pending(dist.batch_isend_irecv([*sends, *receives]), lambda: received)


def gather_json(value: Any) -> list[Any]:
    """Each rank's JSON-able value, in rank order (JSON, not pickle: a peer may be compromised)."""
    if world_size() == 1:
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_device())
    return [json.loads(bytes(part.cpu().tolist()).decode()) for part in all_gather_variable(payload)]


def cpu_group() -> Any:
    """A gloo group over all ranks for flags that must not make a GPU wait; None in one process."""
    if world_size() == 1:
        return None
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    group = dist.new_group(backend="gloo")
    _CPU_GROUPS.append(group)
    return group


def all_reduce_max_async(x: Tensor, group: Any) -> Any:
    """Start a maximum over ranks of a CPU tensor in place; returns a handle with ``wait()`` or None."""
    return dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group, async_op=True) if group is not None else None


def take_from_rank_0(module: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0; all ranks call it together."""
    for tensor in module.state_dict().values() if world_size() > 1 else ():
        dist.broadcast(tensor, src=0)


def shard(module: nn.Module, mesh: Any) -> None:
    """Spread a module's weights over the ranks of ``mesh`` (FSDP2), layer by layer; rank 0's are taken.

    The layers are the outermost modules in a ``ModuleList`` or ``Sequential`` that have modules of their own. Between forwards
    each rank holds its share of every weight; gradients are averaged over ranks as they are spread.

    Raises:
        ValueError: If the mesh has more than one dimension: FSDP2 would copy weights over the first and spread them over the last.
    """
    from torch.distributed.fsdp import fully_shard

    if mesh.ndim != 1:
        raise ValueError(f"weights are spread over one dimension of a mesh, got {mesh.ndim}; name one")
    take_from_rank_0(module)
    layers: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for parent in module.modules():
        if isinstance(parent, nn.ModuleList | nn.Sequential) and parent not in inside:
            found = [child for child in parent if len(list(child.children())) and len(list(child.parameters()))]
            layers += found
            inside.update(part for child in found for part in child.modules())
    for layer in dict.fromkeys(layers):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all weights below ``module``, and may run as many forwards as it likes; all ranks enter together."""
    if not any(is_spread(parameter) for parameter in module.parameters()):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    layers = [child for child in module.modules() if isinstance(child, FSDPModule)]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True, recurse=False)


def is_spread(x: Tensor) -> bool:
    """Whether a tensor is spread over ranks. Imports nothing for one that plainly is not: FSDP2 costs a second that others need not pay."""
    if type(x) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def local(x: Tensor) -> Tensor:
    """This rank's share of a spread tensor, the same memory; any other tensor as it is."""
    return x._local_tensor if is_spread(x) else x  # type: ignore[attr-defined]


def full(x: Tensor) -> Tensor:
    """The whole of a spread tensor; all ranks call it together. Any other tensor as it is."""
    return x.detach().full_tensor() if is_spread(x) else x  # type: ignore[attr-defined]


def spread_like(x: Tensor, like: Tensor) -> Tensor:
    """The whole tensor ``x``, equal on every rank, spread as ``like`` is (as it is where that is not spread)."""
    if not is_spread(like):
        return x
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def average_unspread_(gradients: Sequence[Tensor]) -> None:
    """Average over ranks, in place and in one all-reduce, those gradients that are not spread (and so were not averaged yet)."""
    plain = [x for x in gradients if not is_spread(x)]
    if not plain or world_size() == 1:
        return
    flat = all_reduce_(torch.cat([x.reshape(-1) for x in plain])) / world_size()
    for x, mean in zip(plain, torch.split(flat, [x.numel() for x in plain]), strict=True):
        x.copy_(mean.view_as(x))


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, spread ones counted whole; a scalar, equal on every rank where the others are."""
    shares = [local(x) for x in tensors if is_spread(x)]
    plain = torch.nn.utils.get_total_norm([x for x in tensors if not is_spread(x)])
    if len(shares) == 0:
        return plain
    return (all_reduce_(torch.nn.utils.get_total_norm(shares).square()) + plain.square()).sqrt()


def _device() -> torch.device:
    nccl = is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
