"""Where in an image its similarity to a text comes from.

Three ways, by what the tower is made of:

- **attention** (vision transformers of open_clip): gradient-weighted attention, carried through all blocks to the pooled token
  (Chefer, Gur and Wolf 2021, https://arxiv.org/abs/2103.15679, equations 5 and 6). Only what speaks for the text counts, so a map is never
  negative. Projected patch tokens (MaskCLIP) are not used: patches of the last blocks hold what the rest of the image says.
- **gradcam** (ConvNets): gradient times activation, summed over channels, at the deepest layer that still has ``FEWEST`` x ``FEWEST`` places
  (HiResCAM, Draelos and Carin 2020, https://arxiv.org/abs/2011.08891; it equals grad-CAM where global average pooling follows, and stays with
  the places where it does not).
- **integrated** (all else, such as timm's transformers): integrated gradients of the pixels from the image's mean colour, summed over cells
  (Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365): a map sums to what the image adds to the similarity over its mean colour.

Shapes: M texts, D embedding width, H x W places.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.towers.graph_files import graph_of
from clipkit.towers.open_clip import ImageTower

FEWEST = 2
STEPS = 32  # of the path of integrated gradients
CELLS = 14  # cells a side, at most, of a map of pixels
ATTENTION, GRADCAM, INTEGRATED = "attention", "gradcam", "integrated"


class Relevance(NamedTuple):
    """What each place adds to the similarity with each direction."""

    maps: Tensor
    """(M, H, W) float32."""
    method: str
    """``attention``, ``gradcam`` or ``integrated``."""


def relevance(tower: ImageTower, image: Tensor, directions: Tensor) -> Relevance:
    """What each place of an image adds to its dot product with each direction.

    Args:
        tower: The image tower, in evaluation mode.
        image: Pixels as the tower takes them, uint8 (3, height, width).
        directions: Directions among the embeddings (M, D), such as a text's less another's; of any norm.

    Raises:
        ValueError: If the tower is a file of a program that gives no gradients.
    """
    graph = graph_of(tower)
    if graph is not None and not graph.gradients:
        raise ValueError(f"{graph.place} is an exported file ({graph.kind}) without gradients; explain the run itself")
    device = next(tower.parameters()).device
    x, directions = tower.normalise(image[None].to(device)), directions.to(device)
    if _plain_transformer(tower.model):
        return Relevance(_attention(tower, x, directions), ATTENTION)
    grid = _deepest_grid(tower, x)
    if grid is not None:
        return Relevance(_gradcam(tower, x, directions, grid), GRADCAM)
    return Relevance(_integrated(tower, x, directions), INTEGRATED)


def _plain_transformer(model: Any) -> bool:
    """Whether it is open_clip's vision transformer, with torch's attention in every block and no attention pooling."""
    blocks = getattr(getattr(model, "transformer", None), "resblocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or getattr(model, "attn_pool", None) is not None:
        return False
    layers = [getattr(block, "attn", None) for block in blocks]
    return hasattr(model, "grid_size") and all(
        isinstance(one, nn.MultiheadAttention) and one.batch_first for one in layers
    )


class _Visible(nn.Module):
    """An attention layer that computes the same step by step and keeps its weights (B, heads, L, L) in the graph.

    Args:
        attention: The layer.
        kept: Where to put the weights.
    """

    def __init__(self, attention: nn.MultiheadAttention, kept: list[Tensor]) -> None:
        super().__init__()
        self.attention = attention
        self.kept = kept

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Attend from every token of ``q`` (B, L, C) to every one."""
        inner, heads = self.attention, self.attention.num_heads
        batch, length, _channels = q.shape
        projected = F.linear(q, inner.in_proj_weight, inner.in_proj_bias).view(batch, length, 3, heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        self.kept.append(weights)
        return inner.out_proj((weights @ value).transpose(1, 2).flatten(2)), None


def _attention(tower: ImageTower, x: Tensor, directions: Tensor) -> Tensor:
    model: Any = tower.model
    blocks = list(model.transformer.resblocks)
    weights: list[Tensor] = []
    held = [block.attn for block in blocks]
    try:
        for block in blocks:
            block.attn = _Visible(block.attn, weights)
        with torch.enable_grad():
            similar = tower(x.requires_grad_()).pooled[0] @ directions.T
    finally:
        for block, attention in zip(blocks, held, strict=True):
            block.attn = attention
    height, width = model.grid_size
    maps = []
    for value in similar:
        gradients = torch.autograd.grad(value, weights, retain_graph=True)
        told = torch.eye(weights[0].shape[-1], device=x.device)  # (L, L): which token's content stands at which place
        for weight, gradient in zip(weights, gradients, strict=True):
            told = told + (weight.detach() * gradient)[0].clamp(min=0).mean(0) @ told
        extra = len(told) - height * width
        pooled = told[0] if model.pool_type == "tok" else told[extra:].mean(0)
        maps.append(pooled[extra:].reshape(height, width))
    return torch.stack(maps).float().cpu()


def _gradcam(tower: ImageTower, x: Tensor, directions: Tensor, grid: nn.Module) -> Tensor:
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = grid.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            similar = tower(x).pooled[0] @ directions.T
    finally:
        handle.remove()
    gradients = [torch.autograd.grad(value, kept[-1], retain_graph=True)[0] for value in similar]
    return torch.stack([(gradient * kept[-1]).sum(1)[0] for gradient in gradients]).detach().float().cpu()


def _integrated(tower: ImageTower, x: Tensor, directions: Tensor) -> Tensor:
    start = x.mean((2, 3), keepdim=True).expand_as(x)
    sums = [torch.zeros_like(x) for _ in directions]
    for step in range(STEPS):
        at = (start + (step + 0.5) / STEPS * (x - start)).requires_grad_()
        with torch.enable_grad():
            similar = tower(at).pooled[0] @ directions.T
        for number, value in enumerate(similar):
            sums[number] += torch.autograd.grad(value, at, retain_graph=True)[0]
    added = torch.cat([(total / STEPS * (x - start)).sum(1) for total in sums])  # (M, height, width)
    height, width = (min(CELLS, side) for side in added.shape[1:])
    cells = added.shape[1] * added.shape[2] / (height * width)
    return (F.adaptive_avg_pool2d(added[None], (height, width))[0] * cells).float().cpu()


@torch.no_grad()
def _deepest_grid(tower: ImageTower, x: Tensor) -> nn.Module | None:
    """Of a ConvNet, the last module that gives a map (1, C, H, W) of at least ``FEWEST`` x ``FEWEST`` places."""
    if not tower.channels_last:  # a transformer: its one convolution makes the patches
        return None
    found: list[nn.Module] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) >= FEWEST:
            found.append(module)

    handles = [module.register_forward_hook(look) for module in tower.model.modules()]
    try:
        tower(x)
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] if found else None
