"""How far each parameter of an open_clip model lies from its output: the one measure behind locking and layer-wise learning rates.

0 is the projection, 1 the last block with the norm after it, and so on down to the embeddings or the stem; open_clip counts its unlocked groups
the same way (https://arxiv.org/abs/2111.07991, LiT), and so does layer-wise decay (https://arxiv.org/abs/2106.08254, BEiT).
"""

from __future__ import annotations

import re

from torch import nn

_BLOCK = re.compile(r"(?:^|\.)(?:resblocks|layer|layers|block|blocks|h)\.?(\d+)\.")
_OUTPUT = ("proj", "text_projection", "head.", "attnpool.", "transformer.pooler.")
_LAST = ("ln_post.", "ln_final.", "attn_pool.", "transformer.final_layer_norm.", "transformer.ln_f.")


def depths(model: nn.Module) -> dict[str, int]:
    """Layers between each parameter and the output.

    Args:
        model: open_clip's image or text model: a transformer, a ``ModifiedResNet``, a timm trunk or a Hugging Face encoder.

    Returns:
        Parameter name to layers, 0 at the output.
    """
    names = [name for name, _ in model.named_parameters()]
    trunk = getattr(model, "trunk", None)
    if isinstance(trunk, nn.Module) and hasattr(trunk, "group_matcher"):
        return _of_timm(trunk, names)
    blocks = {name: int(found[1]) for name in names if (found := _BLOCK.search(name))}
    first, last = min(blocks.values(), default=0), max(blocks.values(), default=-1)
    stem = last - first + 2
    return {name: _of_other(name, stem) if name not in blocks else last - blocks[name] + 1 for name in names}


def _of_other(name: str, stem: int) -> int:
    return 0 if name.startswith(_OUTPUT) else 1 if name.startswith(_LAST) else stem


def _of_timm(trunk: nn.Module, names: list[str]) -> dict[str, int]:
    from timm.models import group_parameters

    group = group_parameters(trunk, trunk.group_matcher(), reverse=True)  # type: ignore[operator]
    last = max(group.values(), default=0)
    return {name: last - group[key] + 1 if (key := name.removeprefix("trunk.")) in group else 0 for name in names}
