"""Tokenizers of transformers' folders: by transformers' own classes, from files alone that hold words and rules.

transformers takes file names, classes and code out of ``tokenizer_config.json``. So it is given another folder, of links to the files of
words and of a configuration with the known keys.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.towers.model_files import own_file, read_object
from clipkit.towers.transformers_config import quiet, refuse_code

CONFIG = "tokenizer_config.json"
WORDS = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
_MORE = ("added_tokens.json", "special_tokens_map.json")
_CLASSES = ("CLIPTokenizer", "SiglipTokenizer", "GemmaTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
_KEYS = {f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")} | {
    *("added_tokens_decoder", "additional_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space"),
    *("clean_up_tokenization_spaces", "do_lower_case", "errors", "model_input_names", "model_max_length"),
    *("padding_side", "truncation_side", "split_special_tokens", "spaces_between_special_tokens"),
}


class FolderTokenizer:
    """Texts to tokens int64 (N, context length), padded to the whole context, as its processor makes them when asked to.

    Args:
        folder: As transformers' ``save_pretrained`` writes it.
        kind: ``clip`` or ``siglip``.
        length: Tokens that the model takes.
        words: Size of the model's vocabulary.

    Raises:
        ValueError: If the tokenizer is missing, names code or another class, or does not fit the model.
    """

    def __init__(self, folder: Path, *, kind: str, length: int, words: int) -> None:
        self.place = folder / CONFIG
        self.tokenizer = _tokenizer(folder, kind)
        if self.tokenizer.pad_token_id is None:
            raise ValueError(f"{self.place}: pad_token is missing; name the one that the model was trained with")
        if kind == "siglip" and "attention_mask" in self.tokenizer.model_input_names:
            raise ValueError(
                f"{self.place}: model_input_names has attention_mask: SigLIP was trained without; let it be ['input_ids']"
            )
        if len(self.tokenizer) > words:
            raise ValueError(f"{self.place}: {len(self.tokenizer)} tokens, where the model (config.json) has {words}")
        self.context_length = min(length, int(self.tokenizer.model_max_length))

    def __call__(self, texts: list[str]) -> Tensor:
        """Tokens of each text, cut and padded."""
        asked = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        rows = self.tokenizer(list(texts), **asked)["input_ids"] if texts else []
        return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), self.context_length)

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text before it is cut, special ones included."""
        asked = {"padding": False, "truncation": False, "verbose": False}
        return [len(row) for row in self.tokenizer(list(texts), **asked)["input_ids"]]


def _tokenizer(folder: Path, kind: str) -> Any:
    from transformers import AutoTokenizer

    stored = read_object(folder, CONFIG)
    refuse_code(stored, folder / CONFIG)
    named = stored.get("tokenizer_class")
    if named is not None and str(named).removesuffix("Fast") not in _CLASSES:
        raise ValueError(f"{folder / CONFIG}: tokenizer_class {named!r} is not taken; {', '.join(_CLASSES)} are")
    held = [name for name in (*WORDS, *_MORE) if (folder / name).is_file()]
    if not set(held) & set(WORDS):
        raise ValueError(f"{folder} has none of {', '.join(WORDS)}; write them with tokenizer.save_pretrained(DIR)")
    known = {key: value for key, value in stored.items() if key in _KEYS}
    with tempfile.TemporaryDirectory() as place:
        staged = Path(place)
        for name in held:
            (staged / name).symlink_to(own_file(folder, name).resolve())
        (staged / CONFIG).write_text(json.dumps(known | ({} if named is None else {"tokenizer_class": named})))
        (staged / "config.json").write_text(json.dumps({"model_type": kind}))
        library: Any = AutoTokenizer
        try:
            with quiet():
                return library.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever damaged files make its classes raise
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{folder}: transformers cannot build the tokenizer: {type(error).__name__}: {said}"
            ) from error
