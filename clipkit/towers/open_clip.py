"""Architectures and weights of open_clip: the one file that knows its code (3.3.x).

Every model is built with its text tower as a module of its own (``CustomTextCLIP``), whatever its configuration says, so that towers are two
modules and nothing else; ``open_clip_state_dict`` gives back the keys of open_clip's own class.

open_clip 3.3's text transformer takes no sequence shorter than its context (its causal mask is not cut), so ``TextTower`` runs it itself. For a
causal mask with pooling at the end of text that is exact: what follows that token cannot reach it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.towers.base import Features, Tokenize, Tower, unit
from clipkit.towers.depth import depths
from clipkit.towers.model_files import (
    CONFIG_FILE,
    check_folder_weights,
    never_ask_to_trust,
    read_config_file,
    read_weights,
    refuse_tokenizer_code,
    text_tower_at_hand,
)
from clipkit.towers.open_clip_names import unknown_model
from clipkit.towers.open_clip_run import TrainedModel
from clipkit.towers.open_clip_weights import load_open_clip_weights
from clipkit.towers.resolution import at_resolution


class ImageTower(Tower):
    """An open_clip vision model behind its normalisation.

    Args:
        model: open_clip's ``visual``: float images (B, 3, H, W), normalised, to embeddings (B, D).
        mean: Mean of each channel of an image in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.channels_last = sum(isinstance(child, nn.Conv2d) for child in model.modules()) > 1  # a ViT has one
        self.model = model.to(memory_format=torch.channels_last) if self.channels_last else model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255, persistent=False)

    def depths(self) -> dict[str, int]:
        """Layers between each parameter and the projection."""
        return {f"model.{name}": depth for name, depth in depths(self.model).items()}

    def drop_patches(self, share: float) -> None:
        """Leave out a share of the patches in training (FLIP, https://arxiv.org/abs/2212.00794).

        Raises:
            ValueError: If the tower is no transformer over patches that open_clip or timm can drop.
        """
        from open_clip.transformer import PatchDropout

        trunk = getattr(self.model, "trunk", None)
        if hasattr(self.model, "patch_dropout"):
            self.model.patch_dropout = PatchDropout(share)
        elif hasattr(trunk, "patch_drop"):
            from timm.layers.patch_dropout import PatchDropout as TimmPatchDropout

            trunk.patch_drop = TimmPatchDropout(share, num_prefix_tokens=trunk.num_prefix_tokens)  # type: ignore[union-attr]
        else:
            raise ValueError(
                f"model.patch_dropout={share}: {type(trunk or self.model).__name__} has no patches to drop; leave it out"
            )

    def normalise(self, x: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) as the floats that the model was made for."""
        dtype = next(self.model.parameters()).dtype
        return x.float().sub_(self.mean.float()).div_(self.std.float()).to(dtype)

    def forward(self, x: Tensor) -> Features:
        """Encode images: uint8 (B, 3, H, W), or floats that are normalised already."""
        return Features(unit(self.raw(x)))

    def raw(self, x: Tensor) -> Tensor:
        """What the model gives for such images (B, D), before it is brought to unit norm."""
        x = self.normalise(x) if x.dtype == torch.uint8 else x
        out = at_resolution(self.model, x.contiguous(memory_format=torch.channels_last) if self.channels_last else x)
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


class TextTower(Tower):
    """An open_clip text model that takes tokens of any length up to its context.

    Args:
        model: open_clip's ``TextTransformer`` or ``HFTextEncoder``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pooling = _trimmable(model)

    def depths(self) -> dict[str, int]:
        """Layers between each parameter and the projection."""
        return {f"model.{name}": depth for name, depth in depths(self.model).items()}

    def lengths(self, x: Tensor) -> list[int] | None:
        """Tokens up to the one that is pooled, or None where pooling depends on padding (SigLIP) or on an added token (CoCa)."""
        model: Any = self.model
        if self.pooling is None:
            return None
        if self.pooling == "argmax":
            last = x.argmax(dim=1)
        elif self.pooling == "eos":
            last = (x == model.eos_id).int().argmax(dim=1)
        else:  # a padding mask: everything that is no padding counts
            positions = torch.arange(x.shape[1], device=x.device)
            last = ((x != model.config.pad_token_id) * positions).amax(dim=1)
        return (last + 1).tolist()

    def forward(self, x: Tensor) -> Features:
        """Encode tokens int64 (B, L), L at most the context length."""
        if self.pooling in (None, "mask") or x.shape[1] == getattr(self.model, "context_length", None):
            out = self.model(x)
            return Features(unit(out[0] if isinstance(out, tuple) else out))
        return Features(unit(self._short(x)))

    def _short(self, tokens: Tensor) -> Tensor:
        from open_clip.transformer import text_global_pool

        model: Any = self.model
        length = tokens.shape[1]
        dtype = model.transformer.get_cast_dtype()
        x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        pooled = text_global_pool(x, tokens, pool_type=model.pool_type, eos_token_id=model.eos_id)
        projection = model.text_projection
        if projection is None:
            return pooled  # type: ignore[no-any-return]
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection  # type: ignore[no-any-return]


@dataclass(frozen=True)
class OpenClipPair:
    """The two towers of one open_clip configuration and all that goes with them."""

    image: ImageTower
    text: TextTower
    tokenize: Tokenize
    preprocess: dict[str, Any]
    """open_clip's preprocessing: size, mode, mean, std, interpolation, resize_mode, fill_color."""
    config: dict[str, Any]
    """open_clip's ``model_cfg``, as ``open_clip_config.json`` holds it."""
    log_scale: float
    """Logarithm of the inverse temperature."""
    bias: float | None
    """Bias of the logits, where the model has one (SigLIP)."""
    notes: tuple[str, ...] = ()
    """What was done to its weights so that they fit, and what its files do not say."""


def build_pair(name: str, pretrained: str | None = None) -> OpenClipPair:
    """Build the towers of an open_clip model.

    Args:
        name: An open_clip name (``ViT-B-32``), a JSON file that holds an open_clip model configuration, a folder with
            ``open_clip_config.json``, or ``hf-hub:org/repo``.
        pretrained: A tag of that model or a file of weights; None for random weights (folders and hubs bring their own).

    Raises:
        ValueError: If there is no such model, tag or file, or the configuration is not one of two towers.
    """
    path = Path(name)
    if path.suffix == ".json":
        stored = read_config_file(path)
        return pair_from_config(
            stored["model_cfg"], preprocess=stored.get("preprocess_cfg"), weights=pretrained, place=name
        )
    if (path / CONFIG_FILE).is_file():
        stored = read_config_file(path / CONFIG_FILE)
        check_folder_weights(path)
        with text_tower_at_hand(path, stored) as folder:
            return _create(f"local-dir:{folder}", None, stored["model_cfg"], place=str(path))
    if name.startswith("hf-hub:"):
        return _create(name, None, _hub_config(name))
    import open_clip

    config = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        raise ValueError(unknown_model(name, open_clip.list_models()))
    if pretrained is None or open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained):
        return _create(name, pretrained, config)
    if not Path(pretrained).exists():
        known = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
        tags = f"its tags are {', '.join(known)}" if known else "it has no tags"
        raise ValueError(f"model {name!r}: pretrained weights {pretrained!r} are no tag of it and no file; {tags}")
    return pair_from_config(config, weights=pretrained, place=name)


def pair_of_run(trained: TrainedModel, weights: str) -> OpenClipPair:
    """The towers that open_clip's trainer left in a file, under the options of its run."""
    import open_clip

    config = open_clip.get_model_config(trained.name.replace("/", "-"))
    if config is None:
        raise ValueError(unknown_model(trained.name, open_clip.list_models()))
    return pair_from_config(
        trained.changed(config), preprocess=trained.preprocess(), weights=weights, place=trained.name
    )


def pair_from_config(
    config: Mapping[str, Any],
    *,
    preprocess: Mapping[str, Any] | None = None,
    weights: str | None = None,
    place: str = "the model configuration",
) -> OpenClipPair:
    """Build the towers of an open_clip ``model_cfg``, with random weights unless a file of them is given.

    Args:
        config: What ``open_clip_config.json`` holds as ``model_cfg``.
        preprocess: What it holds as ``preprocess_cfg``.
        weights: A file of weights under open_clip's keys.
        place: Where the configuration stands, for messages.

    Raises:
        ValueError: If open_clip cannot build it, or the weights are of another model.
    """
    with tempfile.TemporaryDirectory() as folder:
        stored = {"model_cfg": dict(config), "preprocess_cfg": dict(preprocess or {})}
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(stored))
        pair = _create(f"local-dir:{folder}", None, dict(config), place=place, start_text=weights is None)
    return pair if weights is None else _with_weights(pair, weights)


def open_clip_state_dict(
    config: Mapping[str, Any], image: ImageTower, text: TextTower, log_scale: float, bias: float | None
) -> dict[str, Tensor]:
    """The towers' weights under the keys that open_clip's own class has for ``config``."""
    separate = bool(config.get("custom_text")) or "hf_model_name" in config.get("text_cfg", {})
    state = {f"visual.{key}": value for key, value in image.model.state_dict().items()}
    state |= {f"text.{key}" if separate else key: value for key, value in text.model.state_dict().items()}
    state["logit_scale"] = torch.tensor(log_scale)
    if bias is not None:
        state["logit_bias"] = torch.tensor(bias)
    return state


def _with_weights(pair: OpenClipPair, path: str) -> OpenClipPair:
    """The pair with the weights of a file, its temperature and bias too; where the file has no bias, the pair has none."""
    state = read_weights(path)
    notes = load_open_clip_weights(pair.image.model, pair.text.model, state, place=path)
    scale, bias = state.get("logit_scale"), state.get("logit_bias")
    if bias is None and pair.bias is not None:
        notes.append(f"{path}: holds no logit_bias: a loss that needs one starts it anew")
    return replace(
        pair,
        log_scale=pair.log_scale if scale is None else float(scale),
        bias=None if bias is None else float(bias),
        notes=tuple(notes),
    )


@lru_cache(maxsize=4)
def build_tokenizer(name: str) -> tuple[Tokenize, int]:
    """The tokenizer of a model, without its towers, and its context length.

    Args:
        name: As in ``build_pair``.

    Raises:
        ValueError: If there is no such model, or its tokenizer cannot be had.
    """
    import open_clip

    path = Path(name)
    with contextlib.ExitStack() as stack:
        if path.suffix == ".json":
            stored = read_config_file(path)
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (path / CONFIG_FILE).write_text(json.dumps(stored))
        if (path / CONFIG_FILE).is_file():
            config, place = read_config_file(path / CONFIG_FILE)["model_cfg"], f"local-dir:{path}"
        elif name.startswith("hf-hub:"):
            config, place = _hub_config(name), name
        else:
            config, place = open_clip.get_model_config(name.replace("/", "-")), name
        if config is None:
            raise ValueError(unknown_model(name, open_clip.list_models()))
        refuse_tokenizer_code(name, config)
        try:
            with _quiet(), never_ask_to_trust(config):
                tokenize = open_clip.get_tokenizer(place)
        except (RuntimeError, OSError, TypeError, ImportError) as error:
            raise ValueError(f"cannot build the tokenizer of {name!r}: {error}") from error
    return tokenize, int(tokenize.context_length)


@dataclass(frozen=True)
class TokenCount:
    """How long captions are before they are cut to the context, special tokens included; travels to workers by name.

    Args:
        model: As in ``build_pair``.
    """

    model: str

    def __call__(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text."""
        return token_counts(build_tokenizer(self.model)[0], texts)


def token_counts(tokenize: Any, texts: Sequence[str]) -> list[int]:
    """How long texts are before they are cut to the context of a tokenizer, special tokens included."""
    if hasattr(tokenize, "count"):  # of an exported folder's own files
        return tokenize.count(list(texts))  # type: ignore[no-any-return]
    if hasattr(tokenize, "encode"):  # SimpleTokenizer: start and end around it
        return [len(tokenize.encode(text)) + 2 for text in texts]
    from open_clip.tokenizer import basic_clean, canonicalize_text

    clean = getattr(tokenize, "clean_fn", None) or (lambda text: canonicalize_text(basic_clean(text)))  # SigLIP's
    added = getattr(tokenize, "tokenizer_mode", "") == "clips"  # it puts three of its own around what it cuts
    held = tokenize.tokenizer([clean(text) for text in texts], add_special_tokens=not added, truncation=False)
    return [len(tokens) + 3 * added for tokens in held.input_ids]


def _create(
    name: str, pretrained: str | None, config: dict[str, Any], *, place: str | None = None, start_text: bool = True
) -> OpenClipPair:
    """Let open_clip build a model; messages call it ``place``, else by its name. A Hugging Face text tower may start from its own weights."""
    import open_clip

    place = place or name
    if "multimodal_cfg" in config:
        raise ValueError(f"{place} has a caption decoder (CoCa); clipkit takes models of an image and a text tower")
    if "text_cfg" not in config:
        raise ValueError(
            f"{place} has no text tower (text_cfg); a model here takes both, images are compared with texts"
        )
    refuse_tokenizer_code(place, config)
    try:
        with _quiet(), never_ask_to_trust(config):
            model = open_clip.create_model(
                name, pretrained=pretrained, force_custom_text=True, pretrained_text=start_text
            )
            tokenize = open_clip.get_tokenizer(name)
    except (RuntimeError, FileNotFoundError, TypeError) as error:
        raise ValueError(f"cannot build the model {place!r} (pretrained: {pretrained}): {error}") from error
    preprocess = open_clip.get_model_preprocess_cfg(model)
    image = ImageTower(model.visual, tuple(preprocess["mean"]), tuple(preprocess["std"]))
    learned_bias = None if model.logit_bias is None else float(model.logit_bias.detach())
    return OpenClipPair(
        image, TextTower(model.text), tokenize, preprocess, config, float(model.logit_scale.detach()), learned_bias
    )


def _trimmable(model: nn.Module) -> str | None:
    """How the end of a text is found where cutting after it is exact, else None."""
    if type(model).__name__ == "HFTextEncoder":
        return "mask"
    causal, pool = getattr(model, "attn_mask", None) is not None, getattr(model, "pool_type", None)
    plain = causal and getattr(model, "cls_emb", None) is None and not getattr(model, "output_tokens", False)
    return pool if plain and pool in ("argmax", "eos") else None


def _hub_config(name: str) -> dict[str, Any]:
    """The architecture of ``hf-hub:org/repo``; a ``ValueError`` if it cannot be had."""
    from open_clip.factory import _get_hf_config

    try:
        return dict(_get_hf_config(name.removeprefix("hf-hub:"))["model_cfg"])
    except (RuntimeError, OSError, ValueError, KeyError) as error:  # the hub's own, and a repository of something else
        raise ValueError(f"cannot build the model {name!r}: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warnings that weights are random, and its own words before an exception: the caller says what was loaded."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
