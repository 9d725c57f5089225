"""Towers that are transformers' own ``CLIPModel`` and ``SiglipModel``, from a folder of configuration, safetensors and tokenizer.

A stranger's folder is data: the class is one of two, weights are safetensors, configurations are read by known keys.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipkit.config.names import DISTRIBUTION
from clipkit.towers.graph_files import GraphModel
from clipkit.towers.model_files import CONFIG_FILE, own_file
from clipkit.towers.open_clip import ImageTower, OpenClipPair, TextTower
from clipkit.towers.transformers_config import CONFIG, model_config, preprocessing, quiet
from clipkit.towers.transformers_tokenizer import CONFIG as TOKENIZER
from clipkit.towers.transformers_tokenizer import WORDS, FolderTokenizer

WEIGHTS, SHARDS = "model.safetensors", "model-*-of-*.safetensors"


class TransformersModel(GraphModel):
    """One encoder of a transformers model: its input (B, ...) to embeddings (B, D), on any device.

    Args:
        folder: Where it comes from.
        body: transformers' vision or text model.
        projection: What its pooled output goes through, if anything.
        given: What it calls its input.
        others: Files that decide what it gives, beside the weights.
    """

    lacks: ClassVar[str] = "no weights under open_clip's names"
    gradients: ClassVar[bool] = True

    def __init__(
        self, folder: Path, body: nn.Module, projection: nn.Module | None, given: str, others: Sequence[Path]
    ) -> None:
        super().__init__(folder, "transformers model", others)
        self.body, self.projection, self.given = body, projection, given
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of any size."""
        pooled: Tensor = self.body(**{self.given: x}).pooler_output
        return pooled if self.projection is None else self.projection(pooled)


def is_transformers_folder(path: Path) -> bool:
    """Whether a folder holds a model as transformers saves it, and not open_clip's beside it."""
    return (path / CONFIG).is_file() and not (path / CONFIG_FILE).is_file()


def transformers_pair(folder: Path, tokens: int | None = None) -> OpenClipPair:
    """The towers, tokenizer, preprocessing and temperature of a transformers folder.

    Args:
        folder: As ``save_pretrained`` of model and processor writes it.
        tokens: The most tokens that a text is to have, if fewer than the model takes.

    Raises:
        ValueError: If a file is missing, is a pickle, names code, or is not what its name says.
    """
    kind, config = model_config(folder)
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(f"{folder} needs transformers: pip install '{DISTRIBUTION}[hf]'")
    model = _model(kind, config, folder)
    words, vision = model.config.text_config, model.config.vision_config
    preprocess = preprocessing(folder, kind, vision.image_size)
    length = min(words.max_position_embeddings, tokens or words.max_position_embeddings)
    tokenize = FolderTokenizer(folder, kind=kind, length=length, words=words.vocab_size)
    files = [folder / name for name in (CONFIG, TOKENIZER, *WORDS)]
    image, text = (
        TransformersModel(folder, getattr(model, f"{name}_model"), getattr(model, projection, None), given, files)
        for name, projection, given in (
            ("vision", "visual_projection", "pixel_values"),
            ("text", "text_projection", "input_ids"),
        )
    )
    width = config["projection_dim"] if kind == "clip" else vision.hidden_size
    bias = getattr(model, "logit_bias", None)
    return OpenClipPair(
        ImageTower(image, tuple(preprocess["mean"]), tuple(preprocess["std"])),
        TextTower(text),
        tokenize,
        preprocess,
        {"embed_dim": width, "vision_cfg": config["vision_config"], "text_cfg": config["text_config"]},
        float(model.logit_scale.detach()),
        None if bias is None else float(bias.detach()),
    )


def _model(kind: str, config: dict[str, Any], folder: Path) -> Any:
    """The model of transformers in evaluation mode, float32; the shapes are compared before anything is made of the size that a file claims."""
    import transformers

    library: Any = transformers  # partly untyped
    make, options = getattr(library, f"{_CLASS[kind]}Model"), getattr(library, f"{_CLASS[kind]}Config")
    state = _weights(folder)
    for name in ("text_config", "vision_config"):
        layers = config[name].get("num_hidden_layers", 0)
        if layers > len(state):
            raise ValueError(
                f"{folder / CONFIG}: {name}.num_hidden_layers {layers} for {len(state)} tensors of weights"
            )
    try:
        with quiet(), torch.device("meta"):
            wanted = make(options(**config)).state_dict()
    except Exception as error:  # transformers checks by its own rules, and torch beneath it
        raise ValueError(f"{folder / CONFIG}: transformers makes no {_CLASS[kind]}Model of it: {error}") from error
    wrong = sorted(
        key
        for key in wanted.keys() | state.keys()
        if key not in wanted or key not in state or wanted[key].shape != state[key].shape
    )
    if wrong:
        found = [f"{key} ({_shape(state, key)}, config.json wants {_shape(wanted, key)})" for key in wrong[:3]]
        raise ValueError(
            f"{folder} does not hold the weights of its own configuration: {', '.join(found)}, {len(wrong)} in all"
        )
    with quiet():
        model = make(options(**config))
    model.load_state_dict(state)
    return model.eval()


_CLASS = {"clip": "CLIP", "siglip": "Siglip"}


def _shape(state: dict[str, Tensor], key: str) -> str:
    return str(list(state[key].shape)) if key in state else "absent"


def _weights(folder: Path) -> dict[str, Tensor]:
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(path.name for path in folder.glob(SHARDS))
    if not names:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        said = f" but {', '.join(pickled)}, pickles, which are not read" if pickled else ""
        raise ValueError(
            f"{folder} has no {WEIGHTS}{said}; write it with model.save_pretrained(DIR, safe_serialization=True)"
        )
    found: dict[str, Tensor] = {}
    for name in names:
        try:
            found |= load_file(own_file(folder, name))
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is no file of safetensors: {error}") from error
    return {key: value for key, value in found.items() if not key.endswith("position_ids")}
