"""``config.json`` and ``preprocessor_config.json`` of transformers' CLIP and SigLIP folders, which may come from a stranger.

What decides the arithmetic is taken by name, all else stays where it is: a configuration of transformers can name code, adapters, another
folder or an attention kernel of the hub.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipkit.towers.graph_files import require_preprocess
from clipkit.towers.model_files import read_object

CONFIG, IMAGES, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
KINDS = ("clip", "siglip")
_TOWER = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
}
_TEXT = {"vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "projection_size"}
_VISION = {"image_size", "patch_size", "num_channels", "vision_use_head"}
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
_FILTERS = {2: "bilinear", 3: "bicubic"}
_CLIP: dict[str, Any] = {
    "size": 224,
    "crop_size": 224,
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SIGLIP: dict[str, Any] = {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "CLIPFeatureExtractor": _CLIP,
    "SiglipImageProcessor": _SIGLIP,
}


@contextlib.contextmanager
def quiet(library: str = "transformers") -> Iterator[None]:
    """Without a library's remarks on what its own classes choose, such as a token beyond a default vocabulary, and transformers' bars."""
    bars: Any = importlib.import_module("transformers.utils.logging")
    log, shown = logging.getLogger(library), bars.is_progress_bar_enabled()
    level = log.level
    log.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        log.setLevel(level)
        if shown:
            bars.enable_progress_bar()


def refuse_code(stored: dict[str, Any], place: str | Path) -> None:
    """Refuse a configuration that names code.

    Raises:
        ValueError: If it has an ``auto_map``.
    """
    if stored.get("auto_map"):
        raise ValueError(
            f"{place}: auto_map names code of the model's own ({stored['auto_map']!r}), which is never run here; "
            "take a folder of transformers' own classes"
        )


def model_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """What decides the arithmetic of a model.

    Args:
        folder: As transformers' ``save_pretrained`` writes it.

    Returns:
        ``clip`` or ``siglip``, and arguments of ``CLIPConfig`` or ``SiglipConfig``.

    Raises:
        ValueError: If it is another model, names code, is quantised, or holds values of other types.
    """
    stored, place = read_object(folder, CONFIG), folder / CONFIG
    refuse_code(stored, place)
    kind = stored.get("model_type")
    if kind not in KINDS:
        raise ValueError(
            f"{place}: model_type {kind!r} is no encoder that is taken from transformers: {', '.join(KINDS)} are"
        )
    if stored.get("quantization_config"):
        raise ValueError(f"{place}: quantization_config needs code beside transformers; save the model unquantised")
    found: dict[str, Any] = {}
    for name, keys in (("text_config", _TOWER | _TEXT), ("vision_config", _TOWER | _VISION)):
        parts = [stored.get(key) or {} for key in (name, f"{name}_dict")]  # old files have both, the latter counts
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"{place}: {name} is no object")
        found[name] = {key: value for part in parts for key, value in part.items() if key in keys and value is not None}
        for key, value in found[name].items():
            _require_plain(key, value, f"{place}: {name}")
    if kind == "clip":
        width = stored.get("projection_dim", 512)  # transformers' own default
        _require_plain("projection_dim", width, str(place))
        found["projection_dim"] = found["text_config"]["projection_dim"] = width
        found["vision_config"]["projection_dim"] = width
    return kind, found


def _require_plain(key: str, value: Any, place: str) -> None:
    if key == "hidden_act":
        good = value in _ACTIVATIONS
    elif key == "layer_norm_eps":
        good = type(value) is float and 0 < value < 1
    elif key == "vision_use_head":
        good = value is True
    else:
        good = type(value) is int and (0 if key.endswith("_id") else 1) <= value <= 10**7
    if not good:
        allowed = f"one of {', '.join(_ACTIVATIONS)}" if key == "hidden_act" else "a value that transformers writes"
        raise ValueError(f"{place}.{key} {value!r} is not taken; {allowed} is")


def preprocessing(folder: Path, kind: str, side: int) -> dict[str, Any]:
    """open_clip's ``preprocess_cfg`` of the image processor that a folder describes.

    Args:
        folder: As transformers' ``save_pretrained`` writes it.
        kind: ``clip`` or ``siglip``: whose defaults hold where a file says nothing.
        side: Pixels that the model takes.

    Raises:
        ValueError: If the folder has no image processor, or one that does what ours cannot.
    """
    found = []
    for name in (IMAGES, PROCESSOR):
        if (folder / name).is_file():
            stored = read_object(folder, name)
            refuse_code(stored, folder / name)
            held = stored.get("image_processor") if name == PROCESSOR else stored
            found += [_translated(held, kind, side, folder / name)] if isinstance(held, dict) else []
    if not found:
        raise ValueError(
            f"{folder} has no {IMAGES}: preprocessing cannot be guessed from weights; write it with processor.save_pretrained(DIR)"
        )
    if found[0] != found[-1]:
        raise ValueError(f"{folder / IMAGES} and {folder / PROCESSOR} want other preprocessing; delete the wrong one")
    return found[0]


def _translated(stored: dict[str, Any], kind: str, side: int, place: Path) -> dict[str, Any]:
    refuse_code(stored, place)
    asked = stored.get("image_processor_type") or stored.get("feature_extractor_type")
    asked = asked or ("CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor")
    name = str(asked).removesuffix("Fast").removesuffix("Pil")
    if name not in _PROCESSORS:
        raise ValueError(f"{place}: image_processor_type {asked!r} is not taken; {', '.join(_PROCESSORS)} are")
    own = _PROCESSORS[name] | {key: value for key, value in stored.items() if value is not None}
    for key, value in (("do_resize", True), ("do_rescale", True), ("do_pad", False)):
        if own.get(key, value) is not value:
            raise ValueError(f"{place}: {key} {own[key]!r} is not taken; {value} is")
    factor = own.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise ValueError(f"{place}: rescale_factor {factor!r} is not taken; 1/255 is")
    resample = own.get("resample", 3)
    if type(resample) is not int or resample not in _FILTERS:
        raise ValueError(f"{place}: resample {resample!r} is not taken; 2 (bilinear) and 3 (bicubic) are")
    normal = own.get("do_normalize", True) is True
    found = {
        "size": [side, side],
        "mode": "RGB",
        "mean": own["image_mean"] if normal else [0.0] * 3,
        "std": own["image_std"] if normal else [1.0] * 3,
        "interpolation": _FILTERS[resample],
        "resize_mode": _resize_mode(own, side, place),
        "fill_color": 0,
        "crop_rounding": "down",  # of an odd margin
    }
    require_preprocess(found, str(place), "weight")
    return found


def _resize_mode(own: dict[str, Any], side: int, place: Path) -> str:
    """``shortest`` or ``squash``, both to the side that the model takes."""
    size, crop = own["size"], own.get("crop_size") if own.get("do_center_crop") else None
    size = {"shortest_edge": size} if type(size) is int else size
    crop = {"height": crop, "width": crop} if type(crop) is int else crop
    square = {"height": side, "width": side}
    if size == {"shortest_edge": side} and crop == square:
        return "shortest"
    if size == square and crop in (None, square):
        return "squash"
    raise ValueError(
        f"{place}: size {own['size']!r}, crop_size {crop!r} for a model of {side} x {side} pixels is not taken: the shortest edge resized to "
        f"{side} and cropped, or both sides resized to {side}"
    )
