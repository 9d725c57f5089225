"""Weights under open_clip's keys into two towers: position embeddings are resized where sizes differ, everything else must fit.

As open_clip's ``load_checkpoint`` does it (bicubic, antialiased, for images; linear for texts), but what was done is said, timm's vision
transformers are resized too, and a file of another model is refused with the keys in question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.towers.resolution import resized

_TEXT_KEYS = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
_SCALES = ("logit_scale", "logit_bias")
_OF_OLD = "embeddings.position_ids"
"""A buffer that transformers wrote before 4.31."""
_IMAGE, _TIMM, _TEXT = "positional_embedding", "trunk.pos_embed", "positional_embedding"
_NAMED = 6


def load_open_clip_weights(image: nn.Module, text: nn.Module, state: Mapping[str, Tensor], *, place: str) -> list[str]:
    """Load weights under open_clip's keys, of its one-tower class or its two-tower one.

    Args:
        image: open_clip's ``visual``.
        text: open_clip's ``text``.
        state: Keys without the prefixes of DDP and compile.
        place: Where they come from, for messages.

    Returns:
        What was done to fit them: embeddings resized, tensors left out.

    Raises:
        ValueError: If keys are missing, unknown or of another shape; each kind is counted and its first named.
    """
    of_image = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    of_text = {key.removeprefix("text."): value for key, value in state.items() if key.startswith("text.")}
    of_text |= {key: value for key, value in state.items() if key.startswith(_TEXT_KEYS)}
    known = ("visual.", "text.", *_TEXT_KEYS, *_SCALES)
    faults = _counted("unexpected", [key for key in state if not key.startswith(known)])
    notes = []
    if old := [key for key in of_text if key.endswith(_OF_OLD) and key not in text.state_dict()]:
        of_text = {key: value for key, value in of_text.items() if key not in old}
        notes.append(f"left out {', '.join(old)}, which transformers no longer has")
    if "logit_scale" not in state:
        notes.append("holds no logit_scale: the temperature starts anew")
    notes += [*_fit_image(image, of_image, place), *_fit_text(text, of_text)]
    for prefix, tower, weights in (("visual.", image, of_image), ("text.", text, of_text)):
        faults += _faults(tower, weights, prefix)
    if faults:
        raise ValueError(f"{place} does not hold weights of this model configuration: {'; '.join(faults)}")
    image.load_state_dict(of_image, strict=True)
    text.load_state_dict(of_text, strict=True)
    return [f"{place}: {note}" for note in notes]


def _fit_image(tower: nn.Module, weights: dict[str, Tensor], place: str) -> list[str]:
    """Bring the embedding of patches to the tower's grid; in place."""
    own, held = tower.state_dict(), weights.get(_IMAGE)
    grid: tuple[int, int] | None = getattr(tower, "grid_size", None)
    if held is not None and grid is not None and _IMAGE in own and len(held) != len(own[_IMAGE]):
        before = _square(len(held) - 1, place, f"visual.{_IMAGE}")
        weights[_IMAGE] = resized(held, before, grid)
        return [_resized(f"visual.{_IMAGE}", before, grid)]
    held = weights.get(_TIMM)
    if held is None or _TIMM not in own or held.ndim != 3 or held.shape[1] == own[_TIMM].shape[1]:
        return []
    trunk = tower.get_submodule("trunk")
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid = tuple(trunk.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
    assert grid is not None
    extra = own[_TIMM].shape[1] - grid[0] * grid[1]
    before = _square(held.shape[1] - extra, place, f"visual.{_TIMM}")
    weights[_TIMM] = resample_abs_pos_embed(held, list(grid), list(before), num_prefix_tokens=extra)
    return [_resized(f"visual.{_TIMM}", before, grid)]


def _fit_text(tower: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Bring the embedding of tokens to the tower's context length; in place."""
    own, held = tower.state_dict().get(_TEXT), weights.get(_TEXT)
    if own is None or held is None or len(held) == len(own) or held.shape[1:] != own.shape[1:]:
        return []
    weights[_TEXT] = F.interpolate(held.float().T[None], len(own), mode="linear", align_corners=False)[0].T
    return [f"the text's {_TEXT} was resized from {len(held)} to {len(own)} tokens (linear)"]


def _square(patches: int, place: str, key: str) -> tuple[int, int]:
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ValueError(f"{place}: {key} is for {patches} patches, no square, so it cannot be resized to other images")
    return side, side


def _resized(key: str, before: tuple[int, int], after: tuple[int, int]) -> str:
    return f"{key} was resized from {before[0]} x {before[1]} to {after[0]} x {after[1]} patches (bicubic)"


def _faults(tower: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> list[str]:
    own = tower.state_dict()
    other = [
        f"{prefix}{key} ({list(weights[key].shape)}, wanted {list(value.shape)})"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
    return [
        *_counted("missing", [prefix + key for key in own if key not in weights]),
        *_counted("unexpected", [prefix + key for key in weights if key not in own]),
        *_counted("of another shape", other),
    ]


def _counted(kind: str, keys: list[str]) -> list[str]:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return [f"{len(keys)} {kind}: {', '.join(keys[:_NAMED])}{more}"] if keys else []
