"""Files of a model from somewhere else: configurations and weights, which may come from a stranger."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.config.json_text import parse_json

CONFIG_FILE = "open_clip_config.json"
PARITY_FILE = "parity.json"  # in every folder that an export made
TEXT_CONFIG = "text_tower"  # folder with the configuration of a Hugging Face text tower, in an exported folder
_PICKLED = (".bin", ".pt", ".pth")
_TOKENIZER_OPTIONS = {"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"}


def read_config_file(path: Path) -> dict[str, Any]:
    """A file as ``open_clip_config.json`` (``model_cfg``, ``preprocess_cfg``), or as open_clip ships them (``model_cfg`` alone)."""
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; give an open_clip name, a JSON model configuration, a run or an exported folder"
        )
    try:
        config = parse_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    stored = config if isinstance(config, dict) and "model_cfg" in config else {"model_cfg": config}
    model = stored["model_cfg"]
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model if isinstance(model, dict) else ())
    if missing:
        raise ValueError(f"{path} is no open_clip model configuration: {', '.join(sorted(missing))} missing")
    return stored


def own_file(folder: Path, name: str) -> Path:
    """A file of a folder, not one elsewhere that a link or a path points to.

    Args:
        folder: The folder of a model.
        name: Of the file, below the folder.

    Raises:
        ValueError: If there is no such file, or it lies outside of the folder (and of the hub's cache that holds the folder).
    """
    path, home = folder / name, folder.resolve()
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}, or it is no file")
    held = (
        [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    )  # as the hub's cache lies
    if not any(path.resolve().is_relative_to(place) for place in held):
        raise ValueError(f"{path} lies outside of its folder ({path.resolve()}); copy the files themselves: cp -rL")
    return path


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a folder that holds one object.

    Raises:
        ValueError: See ``own_file``. If it is something else, with its place.
    """
    path = own_file(folder, name)
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} where an object belongs")
    return found


def read_weights(path: str) -> dict[str, Tensor]:
    """Weights of a file: safetensors, or a ``.pt`` of tensors, bare or with open_clip's trainer's other entries around ``state_dict``.

    Args:
        path: The file.

    Returns:
        Tensors by key, without the prefixes that DDP (``module.``) and compile (``_orig_mod.``) leave.

    Raises:
        ValueError: If there is no such file, it holds more than tensors and plain values (which could run code), or no weights.
    """
    if not Path(path).is_file():
        raise ValueError(f"the file of weights {path} does not exist")
    try:
        stored = _read(path)
    except Exception as error:  # whatever a damaged or hostile file makes torch raise
        raise ValueError(
            f"{path} cannot be read as weights alone (nothing in it is run): {str(error).splitlines()[0]}"
        ) from error
    state = stored.get("state_dict", stored) if isinstance(stored, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        held = ", ".join(map(str, list(stored)[:8])) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"{path} holds no state_dict of tensors, but {held or 'nothing'}")
    return {key.replace("_orig_mod.", "").removeprefix("module."): value for key, value in state.items()}


def _read(path: str) -> Any:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def check_folder_weights(folder: Path) -> None:
    """Read the pickled weights of an exported folder once by ourselves: open_clip's reader falls back to an unsafe one where torch stumbles.

    Raises:
        ValueError: If a file that it may take holds more than tensors and plain values.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLED:
            read_weights(str(path))


@contextlib.contextmanager
def never_ask_to_trust(config: Mapping[str, Any]) -> Iterator[None]:
    """Where a model brings code of its own, transformers asks at the keyboard whether to run it; here it is refused.

    Args:
        config: open_clip's ``model_cfg``.
    """
    text = config.get("text_cfg")
    if not isinstance(text, Mapping) or not any(key in text for key in ("hf_model_name", "hf_tokenizer_name")):
        yield
        return
    from transformers import dynamic_module_utils as asked

    before, asked.TIME_OUT_REMOTE_CODE = asked.TIME_OUT_REMOTE_CODE, 0  # it then raises at once
    try:
        yield
    finally:
        asked.TIME_OUT_REMOTE_CODE = before


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


@contextlib.contextmanager
def text_tower_at_hand(path: Path, stored: dict[str, Any]) -> Iterator[Path]:
    """The folder, or one of links to its files that names ``TEXT_CONFIG`` as the text tower's source instead of the hub."""
    if not (path / TEXT_CONFIG / "config.json").is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in path.iterdir():
            if file.name != CONFIG_FILE:
                (folder / file.name).symlink_to(file.resolve())
        text = stored["model_cfg"]["text_cfg"] | {"hf_model_name": str((path / TEXT_CONFIG).resolve())}
        changed = stored | {"model_cfg": stored["model_cfg"] | {"text_cfg": text}}
        (folder / CONFIG_FILE).write_text(json.dumps(changed))
        yield folder
