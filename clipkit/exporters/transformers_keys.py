"""open_clip's weights under the names that transformers has for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.encoder import Encoder

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def clip_state(encoder: Encoder) -> dict[str, Tensor]:
    """The state of a ``CLIPModel``."""
    image, text = _state(encoder.image.model), _state(encoder.text.model)
    state = {
        "vision_model.embeddings.class_embedding": image["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": image["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": image["positional_embedding"],
        "visual_projection.weight": image["proj"].T.contiguous(),
        "text_projection.weight": _projection(text),
        "logit_scale": torch.tensor(encoder.log_scale),
    }
    for own, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):  # so spelt
        state |= _pair(image, own, f"vision_model.{theirs}")
    return state | _blocks(image, "transformer.resblocks", "vision_model") | _text(text)


def siglip_state(encoder: Encoder) -> dict[str, Tensor]:
    """The state of a ``SiglipModel``."""
    image, text = _state(encoder.image.model), _state(encoder.text.model)
    image = {key.removeprefix("trunk."): value for key, value in image.items()}
    head = "vision_model.head"
    state = {
        "vision_model.embeddings.position_embedding.weight": image["pos_embed"][0],
        f"{head}.probe": image["attn_pool.latent"],
        f"{head}.attention.in_proj_weight": torch.cat([image["attn_pool.q.weight"], image["attn_pool.kv.weight"]]),
        f"{head}.attention.in_proj_bias": torch.cat([image["attn_pool.q.bias"], image["attn_pool.kv.bias"]]),
        "text_model.head.weight": _projection(text),
        "logit_scale": torch.tensor([encoder.log_scale]),
        "logit_bias": torch.tensor([encoder.logit_bias or 0.0]),
    }
    bias = text.get("text_projection.bias")
    state["text_model.head.bias"] = torch.zeros(len(state["text_model.head.weight"])) if bias is None else bias
    for own, theirs in (
        ("patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        ("norm", "vision_model.post_layernorm"),
        ("attn_pool.proj", f"{head}.attention.out_proj"),
        ("attn_pool.norm", f"{head}.layernorm"),
        ("attn_pool.mlp.fc1", f"{head}.mlp.fc1"),
        ("attn_pool.mlp.fc2", f"{head}.mlp.fc2"),
    ):
        state |= _pair(image, own, theirs)
    return state | _blocks(image, "blocks", "vision_model") | _text(text)


def _state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in model.state_dict().items()}


def _projection(text: dict[str, Any]) -> Tensor:
    if "text_projection.weight" in text:  # a Linear layer (proj_bias), already turned
        return text["text_projection.weight"]  # type: ignore[no-any-return]
    return text["text_projection"].T.contiguous()  # type: ignore[no-any-return]


def _text(text: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "text_model.embeddings.token_embedding.weight": text["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": text["positional_embedding"],
        **_pair(text, "ln_final", "text_model.final_layer_norm"),
        **_blocks(text, "transformer.resblocks", "text_model"),
    }


def _pair(state: dict[str, Tensor], own: str, theirs: str) -> dict[str, Tensor]:
    return {f"{theirs}.{kind}": state[f"{own}.{kind}"] for kind in ("weight", "bias")}


def _blocks(state: dict[str, Tensor], own: str, theirs: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(f"{own}."):
            continue
        number, _, rest = key.removeprefix(f"{own}.").partition(".")
        place = f"{theirs}.encoder.layers.{number}"
        stem, _, kind = rest.rpartition(".")
        if rest.startswith(("attn.in_proj", "attn.qkv")):
            kind = "weight" if rest.endswith("weight") else "bias"
            for name, part in zip("qkv", value.chunk(3), strict=True):
                found[f"{place}.self_attn.{name}_proj.{kind}"] = part.contiguous()
        elif stem in _BLOCK:
            found[f"{place}.{_BLOCK[stem]}.{kind}"] = value
        else:
            found[f"{place}.{rest}"] = value  # unknown to transformers: loading names it
    return found
