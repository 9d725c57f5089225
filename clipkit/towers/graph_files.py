"""Encoders that are files of another program: they embed on the CPU and hold no weights that could be trained or exported."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.towers.model_files import CONFIG_FILE, read_config_file
from clipkit.towers.open_clip import ImageTower, OpenClipPair, TextTower, build_tokenizer


class GraphModel(nn.Module):
    """One encoder of an exported folder: its input (B, ...) to embeddings (B, D).

    Args:
        path: The file; weights may lie beside it.
        kind: What it is, in words.
    """

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__()
        self.place, self.kind = str(path), kind
        # says which device and type the tower has, as the weights of another tower do
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_buffer("file", _digest(path))  # tells one file's cached features and figures from another's


def _digest(path: Path) -> Tensor:
    """SHA-256 of a file and of the weights beside it, uint8 (32)."""
    found = hashlib.sha256()
    for part in (path, path.with_name(f"{path.name}.data")):
        if part.is_file():
            with part.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
    return torch.tensor(list(found.digest()), dtype=torch.uint8)


def graph_of(tower: nn.Module) -> GraphModel | None:
    """The file that a tower is; None where it holds weights."""
    return next((model for model in tower.modules() if isinstance(model, GraphModel)), None)


@dataclass(frozen=True)
class Beside:
    """What an exported folder says about its graphs: open_clip's ``model_cfg`` and ``preprocess_cfg``, the latter complete."""

    folder: Path
    config: dict[str, Any]
    preprocess: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, kind: str) -> Beside:
        """Read ``open_clip_config.json``.

        Raises:
            ValueError: If it is missing, or lacks preprocessing.
        """
        if not (folder / CONFIG_FILE).is_file():
            raise ValueError(
                f"{folder} has no {CONFIG_FILE} beside its {kind}s: tokenizer and preprocessing are not known"
            )
        stored = read_config_file(folder / CONFIG_FILE)
        preprocess = stored.get("preprocess_cfg") or {}
        missing = {"size", "mean", "std", "interpolation", "resize_mode"} - set(preprocess)
        if missing:
            said = ", ".join(sorted(missing))
            raise ValueError(f"{folder / CONFIG_FILE}: preprocess_cfg lacks {said}; it cannot be guessed from {kind}s")
        return cls(folder, stored["model_cfg"], preprocess)

    def pair(self, image: GraphModel, text: GraphModel, tower: type[ImageTower] = ImageTower) -> OpenClipPair:
        """Both graphs with their tokenizer, preprocessing and temperature."""
        tokenize, _ = build_tokenizer(str(self.folder))
        scale, bias = (self.config.get(f"init_logit_{name}") for name in ("scale", "bias"))
        return OpenClipPair(
            tower(image, tuple(self.preprocess["mean"]), tuple(self.preprocess["std"])),
            TextTower(text),
            tokenize,
            self.preprocess,
            self.config,
            math.log(1 / 0.07) if scale is None else float(scale),
            None if bias is None else float(bias),
        )
