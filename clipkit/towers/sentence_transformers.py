"""Folders of sentence-transformers: the transformers folder within, where all around it leaves the embeddings as they are.

Modules are named by import strings; nothing is imported: they are compared with the names of the two that stand for what happens here anyway.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from clipkit.config.json_text import parse_json
from clipkit.towers.model_files import own_file, read_object
from clipkit.towers.open_clip import OpenClipPair
from clipkit.towers.transformers import transformers_pair
from clipkit.towers.transformers_config import CONFIG, refuse_code

MODULES, ENCODER, WHOLE = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
_FIRST, _NORMALIZE = ("Transformer", "CLIPModel"), "Normalize"


def is_sentence_transformers_folder(path: Path) -> bool:
    """Whether a folder holds a list of modules as sentence-transformers saves it."""
    return (path / MODULES).is_file()


def sentence_transformers_pair(folder: Path) -> OpenClipPair:
    """The towers of the transformers folder within.

    Raises:
        ValueError: If a module or an option would change the embeddings of that folder, or see ``transformers_pair``.
    """
    inner = _inner(folder)
    kind = read_object(inner, CONFIG).get("model_type")
    return transformers_pair(inner, _tokens(inner, str(kind)) if _unchanged(folder) else None)


def _inner(folder: Path) -> Path:
    place = own_file(folder, MODULES)
    try:
        modules = parse_json(place.read_bytes())
        kinds = [str(one["type"]).rsplit(".", 1)[-1] for one in modules]
        path = PurePosixPath(str(modules[0]["path"]))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{place} is no list of modules: {error!r}") from error
    if kinds[0] not in _FIRST or any(kind != _NORMALIZE for kind in kinds[1:]):
        raise ValueError(f"{place}: modules {kinds} are not taken; {' or '.join(_FIRST)} with {_NORMALIZE} is")
    inner = folder / path
    if path.is_absolute() or ".." in path.parts or not inner.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place}: path {str(path)!r} leads out of the folder; copy that folder into it")
    return inner


def _unchanged(folder: Path) -> bool:
    """Refuse what the whole adds to texts or takes from embeddings."""
    stored = read_object(folder, WHOLE) if (folder / WHOLE).is_file() else {}
    prompts, name = stored.get("prompts") or {}, stored.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else name
    for key, value in (("default_prompt_name", prompt), ("truncate_dim", stored.get("truncate_dim"))):
        if value:
            raise ValueError(f"{folder / WHOLE}: {key} changes embeddings ({value!r}) and is not taken; delete it")
    return True


def _tokens(inner: Path, kind: str) -> int | None:
    """The most tokens of a text, where the encoder's options say so."""
    stored: dict[str, Any] = read_object(inner, ENCODER) if (inner / ENCODER).is_file() else {}
    place = inner / ENCODER
    refuse_code(stored, place)
    padded = {"text": {"padding": "max_length"}}
    options = stored.get("processing_kwargs") or {}
    if options not in ({}, padded) or (kind == "siglip" and options != padded):
        raise ValueError(
            f"{place}: processing_kwargs {json.dumps(options)} are not taken for {kind}; {json.dumps(padded)} are"
            + (": SigLIP pools at the end of the whole context" if kind == "siglip" else "")
        )
    ways = stored.get("modality_config") or {}
    for name in ("text", "image"):
        way = ways.get(name) if isinstance(ways, dict) else ways
        method = way.get("method") if isinstance(way, dict) else way
        if method not in (None, f"get_{name}_features"):
            raise ValueError(f"{place}: modality_config.{name} {way!r} is not taken; get_{name}_features is")
    if stored.get("do_lower_case"):
        raise ValueError(f"{place}: do_lower_case is not taken; the tokenizer lowers texts by itself")
    longest = stored.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 2):
        raise ValueError(f"{place}: max_seq_length {longest!r} is no number of tokens")
    return longest
