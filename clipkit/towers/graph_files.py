"""Encoders that are files of another program: they embed, most on the CPU, and hold nothing that could be trained or exported."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clipkit.towers.base import Tokenize
from clipkit.towers.model_files import CONFIG_FILE, read_config_file
from clipkit.towers.open_clip import ImageTower, OpenClipPair, TextTower, build_tokenizer


class GraphModel(nn.Module):
    """One encoder of an exported folder: its input (B, ...) to embeddings (B, D).

    Args:
        path: The file; weights may lie beside it.
        kind: What it is, in words.
        others: Further files that decide what it gives.
    """

    lacks: ClassVar[str] = "no weights"
    """Why it cannot be trained or exported."""
    gradients: ClassVar[bool] = False
    """Whether it has gradients of its input."""

    def __init__(self, path: Path, kind: str, others: Sequence[Path] = ()) -> None:
        super().__init__()
        self.place, self.kind = str(path), kind
        # says which device and type the tower has, as the weights of another tower do
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)
        beside = path.with_name(f"{path.name}.data")
        # tells one file's cached features and figures from another's
        self.register_buffer("file", _digest([path, beside, *others]))


def _digest(paths: Sequence[Path]) -> Tensor:
    """SHA-256 of files, those that are there; uint8 (32)."""
    found = hashlib.sha256()
    for part in paths:
        if part.is_file():
            with part.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
    return torch.tensor(list(found.digest()), dtype=torch.uint8)


def graph_of(tower: nn.Module) -> GraphModel | None:
    """The file that a tower is; None where it holds weights under open_clip's names."""
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
        require_preprocess(preprocess, f"{folder / CONFIG_FILE}: preprocess_cfg", kind)
        return cls(folder, stored["model_cfg"], preprocess)

    def pair(
        self,
        image: GraphModel,
        text: GraphModel,
        tower: type[ImageTower] = ImageTower,
        tokenize: Tokenize | None = None,
    ) -> OpenClipPair:
        """Both graphs with their tokenizer (the configuration's where none is given), preprocessing and temperature."""
        scale, bias = (self.config.get(f"init_logit_{name}") for name in ("scale", "bias"))
        unsaid = f"{self.folder} holds no temperature: 0.07 is taken, which calibration alone depends on"
        return OpenClipPair(
            tower(image, tuple(self.preprocess["mean"]), tuple(self.preprocess["std"])),
            TextTower(text),
            tokenize or build_tokenizer(str(self.folder))[0],
            self.preprocess,
            self.config,
            math.log(1 / 0.07) if scale is None else float(scale),
            None if bias is None else float(bias),
            () if scale is not None else (unsaid,),
        )


def require_preprocess(preprocess: Any, place: str, kind: str) -> None:
    """Refuse preprocessing that is not said in full.

    Args:
        preprocess: open_clip's ``preprocess_cfg``.
        place: Where it stands, for messages.
        kind: What it is for, in words.

    Raises:
        ValueError: If a key is missing, or is of another type than open_clip writes.
    """
    needed = {"size", "mean", "std", "interpolation", "resize_mode"}
    missing = needed - set(preprocess if isinstance(preprocess, Mapping) else ())
    if missing:
        raise ValueError(f"{place} lacks {', '.join(sorted(missing))}; it cannot be guessed from {kind}s")
    sides, size = preprocess["size"], preprocess["size"]
    if not isinstance(size, list | tuple):
        sides = [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= 16384 for side in sides):
        raise ValueError(f"{place}: size {size!r} is no height and width in pixels, such as [224, 224]")
    for name in ("mean", "std"):
        channels = preprocess[name]
        numbers = isinstance(channels, list | tuple) and all(type(one) in (int, float) for one in channels)
        if not numbers or len(channels) != 3 or not all(map(math.isfinite, channels)):
            raise ValueError(f"{place}: {name} {channels!r} is no number for each of three channels")
    if 0 in preprocess["std"]:
        raise ValueError(f"{place}: std {preprocess['std']!r} holds 0, and pixels are divided by it")
