"""Small models of open_clip's real configurations for ``export_parity``: fewer and narrower layers, everything else as published."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from timm.models import register_model

from clipkit.encoder import Encoder
from clipkit.exporters.probes import HARD_TEXTS, embedded_probes
from clipkit.towers.model_files import CONFIG_FILE, TEXT_CONFIG
from clipkit.towers.open_clip import build_pair, pair_from_config

TEXT = {"width": 64, "heads": 2, "layers": 2}
VIT = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # roberta's numbers


@register_model
def vit_small_siglip(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """As timm's ``vit_base_patch16_siglip_224`` with two layers of width 64 and 64 px: open_clip's configuration names a timm model alone."""
    model: torch.nn.Module = timm.create_model(
        "vit_base_patch16_siglip_224", img_size=64, embed_dim=64, depth=2, num_heads=2, pretrained=pretrained, **options
    )
    return model


def small(name: str, **vision: Any) -> dict[str, Any]:
    """A published configuration, cut."""
    config: dict[str, Any] = copy.deepcopy(open_clip.get_model_config(name))
    config["embed_dim"] = 64
    config["vision_cfg"] |= vision
    return config


def build(name: str, folder: Path) -> Encoder:
    """One of ``MODELS``, random weights of a fixed seed; ``folder`` is for the files of a tokenizer."""
    if name in ("vit", "vit quick_gelu"):
        return small_vit(quick_gelu=name != "vit")
    torch.manual_seed(0)
    if name == "roberta":
        return _roberta(folder)
    if name == "siglip":
        return _siglip(folder)
    config, preprocess = {
        "rn50": (small("RN50", image_size=64, layers=[1, 1, 1, 1], width=16), {}),
        "convnext": (
            small("convnext_base_w", timm_model_name="convnext_atto", image_size=64),
            {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        ),
    }[name]
    config["text_cfg"] |= TEXT
    pair = pair_from_config(config, preprocess=preprocess)
    return Encoder.from_pair(pair, model=name, pretrained=None)


MODELS = ("vit", "vit quick_gelu", "rn50", "siglip", "roberta", "convnext")


def small_vit(*, quick_gelu: bool = True, end: int | None = None) -> Encoder:
    """ViT-B-32, cut; with ``end``, its text tower pools at that token."""
    config = small("ViT-B-32", **VIT) | {"quick_gelu": quick_gelu}
    config["text_cfg"] |= TEXT | ({} if end is None else {"pool_type": "eos", "eos_id": end})
    torch.manual_seed(0)
    return Encoder.from_pair(pair_from_config(config), model="small ViT-B-32", pretrained=None)


def _siglip(folder: Path) -> Encoder:
    config = small("ViT-B-16-SigLIP", timm_model_name="vit_small_siglip", image_size=64)
    config["text_cfg"] |= TEXT | {"vocab_size": save_words(folder, "template")}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    return _stored(folder, config, preprocess, "siglip")


def _roberta(folder: Path) -> Encoder:
    from transformers import RobertaConfig, RobertaModel

    words = save_words(folder, "roberta")
    options = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    text = RobertaConfig(vocab_size=words, max_position_embeddings=80, **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    RobertaModel(text, add_pooling_layer=False).save_pretrained(folder / TEXT_CONFIG)
    config = small("roberta-ViT-B-32", **VIT)
    config["text_cfg"] |= {"context_length": 32}
    return _stored(folder, config, {}, "roberta")


def _stored(folder: Path, config: dict[str, Any], preprocess: dict[str, Any], name: str) -> Encoder:
    """Through a folder, which holds the tokenizer."""
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    return Encoder.from_pair(build_pair(str(folder)), model=name, pretrained=None)


def save_words(folder: Path, kind: str) -> int:
    """A byte-pair tokenizer of the probes' own words, trained here: the published ones lie on a hub. How many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    raw.train_from_iterator([*embedded_probes()[1], *HARD_TEXTS], trainer)
    single = "<s> $A </s>" if kind == "roberta" else "$A </s>"
    numbers = [(token, raw.token_to_id(token)) for token in ("<s>", "</s>")]
    raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=numbers)
    tokens = {"pad_token": "<pad>" if kind == "roberta" else "</s>", "unk_token": "<unk>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=["input_ids"], bos_token="<s>", **tokens)
    fast.save_pretrained(folder)
    return int(raw.get_vocab_size())
