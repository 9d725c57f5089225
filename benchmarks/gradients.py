"""Are the losses' gradients those of the global batch? On 1, 2 and 3 real gloo ranks, uneven, against the dense formula in float64.

Each error is the largest absolute difference over the largest absolute float64 value of that tensor: the loss, the gradients of both embeddings,
of the scale and of the bias. ``max_error`` is float64's. Float32's is held against the larger of 1e-5 and four times what the dense formula
itself loses in float32: ``max_error_fp32_excess`` is the largest ratio. What micro-batches do to the towers' gradients is in
``tower_gradients.py``.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
import tower_gradients
from common import figure, finish, quick
from torch import Tensor

from clipkit import distributed
from clipkit.losses.infonce import infonce
from clipkit.losses.sigmoid import sigmoid

WIDTH, TILE = 64, 50
SIZES = {1: [211], 2: [120, 91], 3: [101, 37, 73]}
SCALES, COSINES, BIAS = (14.0, 100.0), (0.0, 0.3), -5.0
NAMES = ("infonce", "sigmoid")
Tensors = dict[str, Tensor]


def embeddings(cosine: float, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Random unit vectors, pairs with this mean cosine; the same numbers in both types."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = (F.normalize(torch.randn(sum(SIZES[1]), WIDTH, generator=generator), dim=1) for _ in range(2))
    y = F.normalize(cosine * x + (1 - cosine**2) ** 0.5 * noise, dim=1)
    return x.to(dtype), y.to(dtype)


def dense(name: str, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The formula over the whole matrix."""
    logits = scale * x @ y.T
    if name == "infonce":
        labels = torch.arange(len(x))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return -F.logsigmoid((2 * torch.eye(len(x), dtype=x.dtype) - 1) * (logits + bias)).sum() / len(x)


def tiled(name: str, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return infonce(x, y, scale, tile=TILE) if name == "infonce" else sigmoid(x, y, scale, bias, tile=TILE)


def gradients(of: str, name: str, x: Tensor, y: Tensor, scale: float) -> Tensors:
    """The loss and its gradients."""
    leaves = {"x": x.clone(), "y": y.clone(), "scale": x.new_tensor(scale), "bias": x.new_tensor(BIAS)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    loss = (dense if of == "dense" else tiled)(name, *leaves.values())
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {"loss": loss.detach()} | {k: g for k, g in zip(leaves, found, strict=True) if g is not None}


def cases(seeds: int) -> Iterator[tuple[str, float, float, int]]:
    return itertools.product(NAMES, SCALES, COSINES, range(seeds))


def of_world(rank: int, world: int, folder: str, seeds: int) -> None:
    """One rank: its part of each case; rank 0 leaves the errors, averaged over ranks as DDP averages."""
    torch.set_num_threads(1)
    if world > 1:
        store = torch.distributed.FileStore(f"{folder}/store{world}", world)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    start = sum(SIZES[world][:rank])
    mine = slice(start, start + SIZES[world][rank])
    errors: dict[str, list[float]] = {"fp64": [], "fp32": []}
    for name, scale, cosine, seed in cases(seeds):
        want = gradients("dense", name, *embeddings(cosine, torch.float64, seed), scale)
        own = gradients("dense", name, *embeddings(cosine, torch.float32, seed), scale)
        for key, dtype in (("fp64", torch.float64), ("fp32", torch.float32)):
            x, y = embeddings(cosine, dtype, seed)
            got = gradients("tiled", name, x[mine], y[mine], scale)
            for tensor in sorted(got.keys() & want.keys()):  # every rank in the same order
                value = got[tensor].double() / world
                if tensor in ("x", "y"):
                    value = distributed.all_gather_rows(value, SIZES[world])
                else:
                    distributed.all_reduce_(value)
                error = relative(value, want[tensor])
                allowed = 1.0 if key == "fp64" else max(1e-5, 4 * relative(own[tensor].double(), want[tensor]))
                errors[key].append(error / allowed)
    if rank == 0:
        torch.save(errors, f"{folder}/errors{world}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def main() -> int:
    """Five draws of each case (``--quick``: one)."""
    seeds = 1 if quick(__doc__ or "") else 5
    errors: dict[str, list[float]] = {"fp64": [], "fp32": []}
    with tempfile.TemporaryDirectory() as folder:
        for world in SIZES:
            mp.spawn(of_world, args=(world, folder, seeds), nprocs=world)  # type: ignore[no-untyped-call]
            found = torch.load(Path(folder) / f"errors{world}.pt", weights_only=True)
            errors = {key: errors[key] + found[key] for key in errors}
    figures = {
        "max_error": figure(errors["fp64"], value=max(errors["fp64"])),
        "max_error_fp32_excess": figure(errors["fp32"], value=max(errors["fp32"])),
    }
    figures |= {key: figure([value]) for key, value in tower_gradients.measure().items()}
    return finish("gradients", peer="the dense formula in float64", figures=figures)


if __name__ == "__main__":
    sys.exit(main())
