"""What open_clip's trainer wrote beside its checkpoints: ``params.txt``, the options of the run, one ``name: value`` a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.config.json_text import parse_json

PARAMS = "params.txt"
_PREPROCESS = {
    "image_mean": "mean",
    "image_std": "std",
    "image_interpolation": "interpolation",
    "image_resize_mode": "resize_mode",
}


@dataclass(frozen=True)
class TrainedModel:
    """The model of an open_clip_train run.

    Args:
        name: Its open_clip name.
        options: The other options that shape model and preprocessing, as written; what was left at None is absent.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    def changed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """``model_cfg`` under the run's ``--force-image-size``, ``--force-context-length`` and ``--force-quick-gelu``."""
        made = dict(config) | {key: dict(config.get(key, {})) for key in ("vision_cfg", "text_cfg")}
        if "force_image_size" in self.options:
            size = parse_json(self.options["force_image_size"])
            made["vision_cfg"]["image_size"] = size[0] if isinstance(size, list) and len(size) == 1 else size
        if "force_context_length" in self.options:
            made["text_cfg"]["context_length"] = int(self.options["force_context_length"])
        if self.options.get("force_quick_gelu") == "True":
            made["quick_gelu"] = True
        return made

    def preprocess(self) -> dict[str, Any]:
        """``preprocess_cfg`` under the run's ``--image-mean`` and the like."""
        read: dict[str, Callable[[str], Any]] = {"image_mean": _numbers, "image_std": _numbers}
        return {
            key: read.get(name, str)(self.options[name]) for name, key in _PREPROCESS.items() if name in self.options
        }


def trained_model(checkpoint: Path) -> TrainedModel | None:
    """The model of the run that wrote ``checkpoint`` (``RUN/checkpoints/epoch_K.pt``), or None where no ``params.txt`` says.

    Raises:
        ValueError: If an option in it cannot be read.
    """
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        params = folder / PARAMS
        if not params.is_file():
            continue
        lines = [line.partition(": ") for line in params.read_text().splitlines()]
        options = {name: value.strip() for name, _, value in lines if value.strip() not in ("", "None")}
        if "model" in options:
            found = TrainedModel(options["model"], options)
            try:
                found.changed({})
                found.preprocess()
            except ValueError as error:
                raise ValueError(f"{params}: an option of the model cannot be read: {error}") from error
            return found
    return None


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.strip("[]()").split(",")]
