"""Towers of the file tree that immich's machine-learning service loads: ONNX files in onnxruntime, their tokenizer in tokenizers.

Texts are cleaned, tokens padded and pictures cropped as immich does it
(https://github.com/immich-app/immich/tree/main/machine-learning/immich_ml), which is not always as open_clip does.
"""

from __future__ import annotations

import importlib.util
import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.config.names import DISTRIBUTION
from clipkit.towers.graph_files import Beside, require_preprocess
from clipkit.towers.model_files import own_file, read_config_file, read_object
from clipkit.towers.onnx import OnnxImageTower, OnnxModel
from clipkit.towers.open_clip import OpenClipPair

IMAGE, TEXT, GRAPH = "visual", "textual", "model.onnx"
CONFIG, PREPROCESS, TOKENIZER = "config.json", "preprocess_cfg.json", "tokenizer.json"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ImmichTokenizer:
    """Texts to tokens int64 (N, context length), as immich's ``OpenClipTextualEncoder`` makes them.

    Args:
        folder: The tree's root.
        config: open_clip's ``model_cfg``, as ``config.json`` holds it.

    Raises:
        ValueError: If tokenizers is missing, or a file of ``textual/`` is missing or is not what its name says.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        place = own_file(folder, f"{TEXT}/{TOKENIZER}")
        if importlib.util.find_spec("tokenizers") is None:
            raise ValueError(f"{place} needs tokenizers: pip install '{DISTRIBUTION}[hf]'")
        from tokenizers import Tokenizer

        pad = read_object(folder, f"{TEXT}/tokenizer_config.json").get("pad_token")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        try:
            plain, self.padded = (Tokenizer.from_file(str(place)) for _ in range(2))
        except Exception as error:  # tokenizers raises Exception itself
            raise ValueError(f"{place} is no tokenizer: {error}") from error
        number = plain.token_to_id(pad) if isinstance(pad, str) else None
        if number is None:
            raise ValueError(f"{folder / TEXT}/tokenizer_config.json: pad_token {pad!r} is no token of {place}")
        text = config["text_cfg"]
        length = text.get("context_length", 77) if isinstance(text, dict) else None
        if type(length) is not int or not 2 <= length <= 65536:
            raise ValueError(f"{folder / CONFIG}: text_cfg.context_length {length!r} is no number of tokens")
        self.context_length = length
        self.canonical = (text.get("tokenizer_kwargs") or {}).get("clean") == "canonicalize"
        plain.no_padding()
        plain.no_truncation()
        self.plain = plain
        self.padded.enable_padding(length=length, pad_token=pad, pad_id=number)
        self.padded.enable_truncation(max_length=length)

    def __call__(self, texts: list[str]) -> Tensor:
        """Tokens of each text, cut and padded."""
        rows = [one.ids for one in self.padded.encode_batch([self._clean(text) for text in texts])]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), self.context_length)

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text before it is cut, special ones included."""
        return [len(one.ids) for one in self.plain.encode_batch([self._clean(text) for text in texts])]

    def _clean(self, text: str) -> str:
        text = " ".join(text.split())
        return text.translate(_NO_PUNCTUATION).lower() if self.canonical else text


def is_immich_folder(path: Path) -> bool:
    """Whether a folder holds both encoders where immich has them."""
    return all((path / name / GRAPH).is_file() for name in (IMAGE, TEXT))


def immich_pair(folder: Path) -> OpenClipPair:
    """The towers, tokenizer and preprocessing of immich's file tree.

    Raises:
        ValueError: If a file is missing, or is not what its name says, or the text encoder wants an attention mask (M-CLIP).
    """
    config = read_config_file(own_file(folder, CONFIG))["model_cfg"]
    preprocess = read_object(folder, f"{IMAGE}/{PREPROCESS}")
    require_preprocess(preprocess, str(folder / IMAGE / PREPROCESS), "ONNX file")
    words = [folder / CONFIG, *(folder / TEXT / name for name in (TOKENIZER, "tokenizer_config.json"))]
    image = OnnxModel(own_file(folder, f"{IMAGE}/{GRAPH}"))
    text = OnnxModel(own_file(folder, f"{TEXT}/{GRAPH}"), words)
    if text.masked:
        raise ValueError(f"{text.place} wants an attention mask (M-CLIP), which is not read from immich's tree")
    # int() of immich rounds an odd margin down
    beside = Beside(folder, config, preprocess | {"crop_rounding": "down"})
    return beside.pair(image, text, OnnxImageTower, ImmichTokenizer(folder, config))
