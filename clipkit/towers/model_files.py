"""Files of a model from somewhere else: configurations and weights, which may come from a stranger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TOKENIZER_OPTIONS = {"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"}


def read_config_file(path: Path) -> dict[str, Any]:
    """A file as ``open_clip_config.json`` (``model_cfg``, ``preprocess_cfg``), or as open_clip ships them (``model_cfg`` alone)."""
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; give an open_clip name, a JSON model configuration, a run or an exported folder"
        )
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    stored = config if isinstance(config, dict) and "model_cfg" in config else {"model_cfg": config}
    model = stored["model_cfg"]
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model if isinstance(model, dict) else ())
    if missing:
        raise ValueError(f"{path} is no open_clip model configuration: {', '.join(sorted(missing))} missing")
    return stored


def read_weights(path: str) -> dict[str, Tensor]:
    """Weights of a safetensors or ``.pt`` file, without the prefixes that DDP and compile leave."""
    if not Path(path).is_file():
        raise ValueError(f"the file of weights {path} does not exist")
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return dict(load_file(path))
    stored = torch.load(path, map_location="cpu", weights_only=True)
    state = stored.get("state_dict", stored)
    return {key.removeprefix("module.").replace("_orig_mod.", ""): value for key, value in state.items()}


def refuse_tokenizer_code(name: str, config: Mapping[str, Any]) -> None:
    """A configuration may come from a stranger, and open_clip hands ``tokenizer_kwargs`` on: ``trust_remote_code`` would run their code."""
    text = config.get("text_cfg")
    options = (text.get("tokenizer_kwargs") if isinstance(text, Mapping) else None) or {}
    unknown = sorted(set(options) - _TOKENIZER_OPTIONS) if isinstance(options, Mapping) else [str(options)]
    if unknown:
        raise ValueError(
            f"{name}: text_cfg.tokenizer_kwargs holds {', '.join(unknown)}, which is not taken from a configuration; "
            f"allowed: {', '.join(sorted(_TOKENIZER_OPTIONS))}"
        )
