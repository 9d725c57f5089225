"""The tile loop under every loss over all pairs of a global batch: O(N D) memory, one similarity pass each way.

Rank r holds B rows of the first field and sees the N columns of the second, gathered or passed round a ring (``exchange.py``). It walks the
(B, N) logits in tiles, keeps what the loss asks for by row and by column (``statistics.py``), and forgets the tile (``sweep.py``). Rows are
complete on their rank; columns are combined over ranks, N numbers. The backward pass computes each tile again. The second direction of a
symmetric loss thus needs neither its own product nor a gathered first field. It knows no loss by name: a loss is a ``TileMath`` (``tile.py``).

With ``prefixes`` (`Matryoshka <https://arxiv.org/abs/2205.13147>`_, equation 1) the logits of a longer prefix are those of the shorter one
plus the product of the next slice, before norms: all prefixes cost one pass.

Shapes: B rows on this rank, N columns on all ranks, D embedding width, K prefixes (1 without), (r, c) one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit import distributed
from clipkit.losses.exchange import Exchange, Gather
from clipkit.losses.sweep import Sweep
from clipkit.losses.tile import Beside, Prefixes, TileMath


def tiled_loss(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    math: TileMath,
    beside: Beside = (),
    prefixes: Prefixes | None = None,
    exchange: Exchange | None = None,
    tile: int | None = None,
) -> Tensor:
    """Mean over the global batch of a loss on ``scale * x @ y.T + bias``.

    A NaN among the features of any rank makes the loss and its gradients NaN, without an error: asking would make a GPU wait, and the guard of
    the step sees it. A row of zeros is a vector like any other, with all cosines 0.

    Args:
        x: Embeddings of one field (B, D); of unit norm where a loss means cosines. Below float32 they are widened.
        y: Embeddings of the other (B, D), paired by row.
        scale: Inverse temperature, a positive scalar.
        bias: Scalar added to the logits, or None.
        math: The loss on one tile.
        beside: Tensors that ``math`` reads beside the features.
        prefixes: Leading widths to take as embeddings, renormalised; None for the whole alone.
        exchange: How columns of other ranks come here; None gathers them.
        tile: Rows and columns of a tile; None for 4,096 on a GPU and 1,024 on a CPU, about as much as its cache holds.

    Returns:
        A scalar; its average over ranks is the global mean, and so is the average of its gradients (features, scale and bias).

    Raises:
        ValueError: If the batches do not pair, no rank has a pair, or a prefix is wider than the embeddings.
    """
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"a loss pairs rows: got {tuple(x.shape)} and {tuple(y.shape)}; both must be (B, D)")
    width = x.shape[1]
    if prefixes is not None and prefixes.widths[-1] > width:
        raise ValueError(f"the prefix {prefixes.widths[-1]} is wider than the embeddings ({width})")
    sizes = distributed.gather_sizes(len(x), x.device)
    if sum(sizes) == 0:
        raise ValueError("the loss of an empty batch: no rank has a pair")
    if x.element_size() < 4:
        x, y = x.float(), y.float()
    if prefixes is not None:
        x, y = (_with_inverse_norms(part, prefixes.widths) for part in (x, y))
    zero = torch.zeros((), dtype=scale.dtype, device=scale.device) if bias is None else bias
    sweep = Sweep(
        math=math,
        exchange=exchange or Gather(),
        prefixes=prefixes or Prefixes((width,), (1.0,)),
        renormalised=prefixes is not None,
        side=tile or (4096 if x.is_cuda else 1024),
        sizes=sizes,
        beside=list(beside),
        at_once=math.immediate and torch.is_grad_enabled(),
        biased=bias is not None,
    )
    result: Tensor = _TiledLoss.apply(x.contiguous(), y.contiguous(), scale, zero, sweep)
    return result


def _with_inverse_norms(x: Tensor, widths: Sequence[int]) -> Tensor:
    """``x`` (B, D) and beside it one over the norm of each of its prefixes (B, D + K)."""
    norms = [x[:, :width].norm(dim=1, keepdim=True).clamp_min(1e-12) for width in widths]
    return torch.cat([x, *(1 / norm for norm in norms)], dim=1)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, sweep: Sweep) -> Tensor:
        ctx.sweep = sweep
        with torch.autocast(x.device.type, enabled=False):
            kept, ctx.sums = sweep.forward(x, y, scale, bias, ctx.needs_input_grad)
            value = sweep.value(x)
        ctx.save_for_backward(x, y, scale, bias, *kept)
        # DDP averages over ranks; times W / N that average is the global mean, for uneven ranks too
        return value * (distributed.world_size() / sum(sweep.sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, *kept = ctx.saved_tensors
        sweep: Sweep = ctx.sweep
        with torch.autocast(x.device.type, enabled=False):
            sums = ctx.sums or sweep.backward(x, y, scale, bias, kept, ctx.needs_input_grad)
            factor = upstream.to(x.dtype) * (distributed.world_size() / sum(sweep.sizes))
            towers = factor * scale.to(x.dtype)
            multiply = (
                torch.Tensor.mul if ctx.sums else torch.Tensor.mul_
            )  # sums made in forward may be asked for again
            return (
                multiply(sums.dx, towers) if ctx.needs_input_grad[0] else None,
                multiply(sums.dy, towers) if ctx.needs_input_grad[1] else None,
                (sums.dscale * factor).to(scale.dtype),
                (sums.dbias * factor).to(bias.dtype),
                None,
            )
