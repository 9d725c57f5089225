"""Image features before and after the projection into the space that is shared with text.

The CLIP paper's linear probes stand on the features before it. A tower is run once and gives both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.towers.base import unit
from clipkit.towers.open_clip import ImageTower


def before_projection(tower: ImageTower, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run an image tower.

    Args:
        tower: The tower; one without a projection gives the same features twice.
        x: Images as the tower takes them (B, 3, H, W).

    Returns:
        The pooled output before the projection (B, H), as it is, and the embedding (B, D), unit norm; float32 at least.

    Raises:
        ValueError: If it is not known where the model projects.
    """
    model: Any = tower.model
    pool, trunk = getattr(model, "attnpool", None), getattr(model, "trunk", None)
    if "proj" in model._parameters:  # open_clip's vision transformer
        with _replaced(model, "proj", None):
            raw = tower.raw(x)
        return _wide(raw), unit(raw @ model.proj)
    if trunk is not None:  # timm's
        with _seen(_timm_projection(model)) as inputs:
            raw = tower.raw(x)
        return _wide(inputs[0] if inputs else raw), unit(raw)
    if pool is not None and hasattr(pool, "c_proj"):  # OpenAI's ResNets project inside their attention pool
        with _replaced(pool, "c_proj", _identity(pool.c_proj)):
            raw = tower.raw(x)
        return _wide(raw), unit(pool.c_proj(raw))
    if hasattr(model, "proj") and model.proj is None:
        raw = tower.raw(x)
        return _wide(raw), unit(raw)
    raise ValueError(f"{type(model).__name__}: it is not known where it projects; take features: [embedding]")


def _timm_projection(model: Any) -> nn.Module | None:
    """What projects in a timm tower: open_clip's own head, else the network's classifier; None where neither does."""
    for name in ("proj", "mlp"):
        if hasattr(model.head, name):
            return getattr(model.head, name)  # type: ignore[no-any-return]
    classifier = model.trunk.get_classifier()
    return None if classifier is None or isinstance(classifier, nn.Identity) else classifier


def _identity(projection: nn.Linear) -> nn.Linear:
    """A linear layer of the same input that changes nothing."""
    width = projection.in_features
    layer = nn.Linear(width, width, device=projection.weight.device, dtype=projection.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
        layer.bias.zero_()
    return layer


@contextlib.contextmanager
def _replaced(module: nn.Module, name: str, value: nn.Module | None) -> Iterator[None]:
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)


@contextlib.contextmanager
def _seen(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What a module is given while the context lasts."""
    inputs: list[Tensor] = []
    if module is None:
        yield inputs
        return
    handle = module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x
