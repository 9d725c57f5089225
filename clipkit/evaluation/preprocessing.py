"""Whether an encoder's preprocessing is a default that slipped in: weights from a bare file bring none along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipkit.encoder import Encoder

_KEYS = ("mean", "std", "interpolation", "resize_mode")


def preprocessing_doubt(encoder: Encoder) -> str | None:
    """A warning where weights came from a file and no published weights of that architecture want this preprocessing; else None.

    open_clip reads a SigLIP file by itself with CLIP's mean, standard deviation and cropping, without a word.
    """
    source = encoder.info.pretrained
    if source is None or not Path(source).is_file():
        return None
    used = _comparable(encoder.info.preprocess)
    wanted = _published(encoder.info.config)
    if not wanted or used in wanted.values():
        return None
    tag, other = next(iter(wanted.items()))
    differ = ", ".join(f"{key} {used[key]} where {tag} has {other[key]}" for key in _KEYS if used[key] != other[key])
    return (
        f"warning: the preprocessing looks like a default that this model does not want: {differ}. A file of weights brings none along; "
        "load an exported folder (open_clip_config.json with preprocess_cfg) instead, or its figures will be too low"
    )


def _published(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The preprocessing of each published set of weights (NAME:TAG) of the architectures of this very configuration."""
    import open_clip

    found: dict[str, dict[str, Any]] = {}
    for name in open_clip.list_models():
        known = open_clip.get_model_config(name)
        if all(config.get(key) == known.get(key) for key in ("embed_dim", "vision_cfg", "text_cfg")):
            for tag in open_clip.list_pretrained_tags_by_model(name):
                found[f"{name}:{tag}"] = _comparable(open_clip.get_pretrained_cfg(name, tag))
    return found


def _comparable(preprocess: dict[str, Any]) -> dict[str, Any]:
    """With open_clip's defaults for what is not said, numbers as tuples."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    default = {
        "mean": OPENAI_DATASET_MEAN,
        "std": OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    held = {key: preprocess.get(key) or default[key] for key in _KEYS}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in held.items()}
