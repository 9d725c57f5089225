"""transformers' ``CLIPModel`` and ``SiglipModel`` from open_clip's native and timm vision transformers.

The weights keep their values: open_clip stacks query, key and value where transformers has three matrices, and transposes its projections.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from clipkit.encoder import Encoder
from clipkit.exporters.candidate import Candidate
from clipkit.exporters.transformers_cleaning import SAID, cleaning
from clipkit.exporters.transformers_keys import clip_state, siglip_state
from clipkit.towers.transformers_config import quiet


@dataclass(frozen=True)
class TransformersFormat:
    """What ``AutoModel.from_pretrained`` and ``AutoProcessor.from_pretrained`` load."""

    name: ClassVar[str] = "transformers"
    usage: ClassVar[str] = """from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
inputs = processor(text=["a red bicycle"], images=[picture], padding="max_length", truncation=True, return_tensors="pt")
found = model(**inputs)
image, text = found.image_embeds, found.text_embeds  # (1, D) each, unit norm"""

    def refuse(self, encoder: Encoder) -> None:
        """All but two native transformers, or timm's SigLIP image tower beside a native text tower; other sizes, resizes and tokenizers."""
        kind = kind_of(encoder)
        _model_config(encoder, kind)
        _image_processor(encoder, kind)
        refuse_tokenizer(encoder)

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write configuration, weights, image processor and tokenizer."""
        from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

        kind = kind_of(encoder)
        config = _model_config(encoder, kind)
        model: Any = CLIPModel(CLIPConfig(**config)) if kind == "clip" else SiglipModel(SiglipConfig(**config))
        state = (clip_state if kind == "clip" else siglip_state)(encoder)
        lost = model.load_state_dict(state, strict=False)
        missing = [key for key in lost.missing_keys if not key.endswith("position_ids")]
        if missing or lost.unexpected_keys:
            raise ValueError(f"transformers' {kind} has no place for this model: {missing} {lost.unexpected_keys}")
        with quiet():
            model.save_pretrained(folder)
        fast_tokenizer(encoder).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(_image_processor(encoder, kind), indent=2) + "\n")

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through ``AutoModel`` and ``AutoProcessor``, from the folder alone."""
        import transformers

        library: Any = transformers  # partly untyped
        with quiet():
            model = library.AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
        length = model.config.text_config.max_position_embeddings

        def image(x: Tensor) -> Tensor:
            return _unit(model.get_image_features(pixel_values=x.to(device)))

        def text(x: Tensor) -> Tensor:
            return _unit(model.get_text_features(input_ids=x.to(device)))

        def raw_image(images: Sequence[Image.Image]) -> Tensor:
            return image(processor(images=list(images), return_tensors="pt")["pixel_values"])

        def raw_text(texts: Sequence[str]) -> Tensor:
            asked = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
            return _unit(
                model.get_text_features(**{k: v.to(device) for k, v in processor(text=list(texts), **asked).items()})
            )

        bias = getattr(model, "logit_bias", None)
        return Candidate(
            image=image,
            text=text,
            raw_image=raw_image,
            raw_text=raw_text,
            temperature=(float(model.logit_scale.detach()), None if bias is None else float(bias.detach())),
            versions={"transformers": version("transformers")},
            shifts=lambda image: (
                getattr(processor.image_processor, "do_center_crop", False)
                and crops_elsewhere(image, model.config.vision_config.image_size)
            ),
            said=((_CROP,) if getattr(processor.image_processor, "do_center_crop", False) else ()) + (SAID,),
        )


FORMAT = TransformersFormat
START, END = "<|startoftext|>", "<|endoftext|>"
RESAMPLE = {"bicubic": 3, "bilinear": 2}  # Pillow's numbers
_CROP = (
    "transformers rounds an odd margin of the centre crop down where open_clip rounds to even: one pixel beside it for some images "
    "that are not square"
)


def crops_elsewhere(image: Image.Image, side: int) -> bool:
    """Whether a centre crop that rounds down cuts an image one pixel beside open_clip's, which rounds to even."""
    short, long = sorted(image.size)
    margin = int(side * long / short) - side
    return round(margin / 2) != margin // 2


def kind_of(encoder: Encoder) -> str:
    """``clip`` or ``siglip``.

    Raises:
        ValueError: If transformers has no class for these towers, with the reason.
    """
    image, text = encoder.image.model, encoder.text.model
    tower, words = type(image).__name__, type(text).__name__
    trunk = type(getattr(image, "trunk", image)).__name__
    if words != "TextTransformer":
        raise ValueError(
            f"the format transformers has no class for the text tower {words}; export open_clip or onnx instead"
        )
    if trunk != "VisionTransformer":
        raise ValueError(
            f"the format transformers has no class for the image tower {trunk}; export open_clip or onnx instead"
        )
    if not hasattr(encoder.tokenize, "bpe_ranks") and not hasattr(encoder.tokenize, "tokenizer"):
        raise ValueError(f"the tokenizer {type(encoder.tokenize).__name__} cannot be saved for transformers")
    config = encoder.info.config
    pool = getattr(text, "pool_type", None)
    if getattr(text, "text_projection", None) is None or config["text_cfg"].get("ls_init_value"):
        raise ValueError(
            "transformers' text towers have a projection and no layer scale; export open_clip or onnx instead"
        )
    if tower == "TimmModel":
        if pool != "last" or getattr(image.trunk, "attn_pool", None) is None or encoder.logit_bias is None:
            raise ValueError(
                "the format transformers takes timm's vision transformer as SiglipModel alone: attention pooling,"
                f" last-token text pooling and a logit bias; here text pools by {pool!r}"
            )
        if hasattr(encoder.tokenize, "bpe_ranks"):
            raise ValueError(
                "SiglipModel sees the padding, and transformers cannot pad with open_clip's own '!'; export onnx"
            )
        return "siglip"
    if pool not in ("argmax", "eos") or encoder.logit_bias is not None or getattr(text, "attn_mask", None) is None:
        raise ValueError(
            f"CLIPModel takes a causal text tower pooled at its end, without logit bias; here it pools by {pool!r}"
        )
    vision = config["vision_cfg"]
    odd = [
        name for name in ("attentional_pool", "no_ln_pre", "ls_init_value", "final_ln_after_pool") if vision.get(name)
    ]
    if odd or vision.get("pool_type", "tok") != "tok":
        raise ValueError(
            f"CLIPModel has no {', '.join(odd) or 'pooling ' + str(vision['pool_type'])} in its image tower"
        )
    return "clip"


def _unit(found: Any) -> Tensor:
    features = found if isinstance(found, Tensor) else found.pooler_output  # transformers 5 wraps it
    return normalize(features, dim=-1)


def _act(encoder: Encoder) -> str:
    return "quick_gelu" if encoder.info.config.get("quick_gelu") else "gelu"


def _text_config(encoder: Encoder) -> dict[str, Any]:
    text: Any = encoder.text.model
    block = text.transformer.resblocks[0]
    return {
        "vocab_size": text.token_embedding.num_embeddings,
        "hidden_size": text.ln_final.normalized_shape[0],
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(text.transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "max_position_embeddings": text.context_length,
        "hidden_act": _act(encoder),
        "layer_norm_eps": text.ln_final.eps,
    }


def _model_config(encoder: Encoder, kind: str) -> dict[str, Any]:
    return _clip_config(encoder) if kind == "clip" else _siglip_config(encoder)


def _clip_config(encoder: Encoder) -> dict[str, Any]:
    image: Any = encoder.image.model
    block = image.transformer.resblocks[0]
    tokenize: Any = encoder.tokenize
    text: Any = encoder.text.model
    end = tokenize.eot_token_id if hasattr(tokenize, "eot_token_id") else text.eos_id
    start = getattr(tokenize, "sot_token_id", end)
    vision = {
        "hidden_size": image.ln_post.normalized_shape[0],
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(image.transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "image_size": _side(encoder, image.image_size),
        "patch_size": image.conv1.kernel_size[0],
        "hidden_act": _act(encoder),
        "layer_norm_eps": image.ln_post.eps,
    }
    width = int(encoder.info.config["embed_dim"])
    pad = end if hasattr(tokenize, "bpe_ranks") else 0
    words = _text_config(encoder) | {"eos_token_id": end, "bos_token_id": start, "pad_token_id": pad}
    words["projection_dim"] = vision["projection_dim"] = width
    return {"text_config": words, "vision_config": vision, "projection_dim": width}


def _siglip_config(encoder: Encoder) -> dict[str, Any]:
    text: Any = encoder.text.model
    trunk: Any = encoder.image.model.trunk
    block = trunk.blocks[0]
    tanh = {"approximate": "tanh"}
    vision = {
        "hidden_size": trunk.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": block.attn.num_heads,
        "image_size": _side(encoder, trunk.patch_embed.img_size),
        "patch_size": trunk.patch_embed.proj.kernel_size[0],
        "hidden_act": "gelu_pytorch_tanh"
        if getattr(block.mlp.act, "approximate", "") == tanh["approximate"]
        else "gelu",
        "layer_norm_eps": trunk.norm.eps,
    }
    words = _text_config(encoder)
    act = text.transformer.resblocks[0].mlp.gelu
    tokenize: Any = encoder.tokenize
    end = tokenize.eot_token_id if hasattr(tokenize, "eot_token_id") else tokenize.tokenizer.eos_token_id
    words["hidden_act"] = "gelu_pytorch_tanh" if getattr(act, "approximate", "") == "tanh" else _act(encoder)
    words |= {
        "projection_size": int(encoder.info.config["embed_dim"]),
        "bos_token_id": 0,
        "eos_token_id": 1 if end is None else int(end),
        "pad_token_id": 0,
    }
    return {"text_config": words, "vision_config": vision}


def _side(encoder: Encoder, built: Sequence[int] | None = None) -> int:
    height, width = encoder.preprocess.size
    if height != width:
        raise ValueError(f"transformers' vision towers take square images, not {height} x {width}")
    if built is not None and tuple(built) != (height, width):
        raise ValueError(
            f"the image tower was built for {tuple(built)} pixels and takes {height} x {width}; transformers has one size"
        )
    return int(height)


def _image_processor(encoder: Encoder, kind: str) -> dict[str, Any]:
    own, side = encoder.info.preprocess, _side(encoder)
    crop = own["resize_mode"] == "shortest"
    if own["resize_mode"] not in ("shortest", "squash"):
        raise ValueError(
            f"transformers' processors do not resize by {own['resize_mode']!r}; squash and shortest they do"
        )
    if own["interpolation"] not in RESAMPLE:
        raise ValueError(
            f"transformers' processors do not interpolate by {own['interpolation']!r}; {' and '.join(RESAMPLE)} they do"
        )
    return {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(own["mean"]),
        "image_std": list(own["std"]),
        "resample": RESAMPLE[own["interpolation"]],
        # CLIP's processor alone crops; squashing needs both sides named
        "do_center_crop": crop,
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side} if crop else {"height": side, "width": side},
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor" if kind == "clip" else "SiglipProcessor",
    }


def refuse_tokenizer(encoder: Encoder) -> None:
    """A tokenizer whose cleaning of texts transformers cannot do; open_clip's own has one that it can.

    Raises:
        ValueError: Naming it.
    """
    tokenize: Any = encoder.tokenize
    clean = tokenize.clean_fn.__name__
    if hasattr(tokenize, "bpe_ranks") and clean == "_clean_whitespace":
        raise ValueError(f"transformers' byte pairs know small letters alone, and the cleaning {clean} keeps capitals")
    cleaning(clean)


def fast_tokenizer(encoder: Encoder) -> Any:
    """open_clip's byte pairs as transformers' ``CLIPTokenizerFast``, or the Hugging Face tokenizer that it wraps."""
    from tokenizers import normalizers

    tokenize: Any = encoder.tokenize
    length = int(tokenize.context_length)  # a Hugging Face text tower knows none
    if not hasattr(tokenize, "bpe_ranks"):  # which open_clip's SimpleTokenizer has
        held = copy.deepcopy(tokenize.tokenizer)
        held.model_max_length = length
        held.model_input_names = held.init_kwargs["model_input_names"] = ["input_ids"]  # the latter is what is saved
        steps = cleaning(tokenize.clean_fn.__name__)
        own = held.backend_tokenizer.normalizer
        held.backend_tokenizer.normalizer = normalizers.Sequence([*steps, own] if own is not None else steps)
        return held
    import transformers

    library: Any = transformers  # partly untyped

    names = {"<start_of_text>": START, "<end_of_text>": END}
    words = {names.get(word, word): number for word, number in tokenize.encoder.items()}
    pairs = [" ".join(pair) for pair in sorted(tokenize.bpe_ranks, key=tokenize.bpe_ranks.get)]
    with tempfile.TemporaryDirectory() as name:
        vocabulary, merges = Path(name) / "vocab.json", Path(name) / "merges.txt"
        vocabulary.write_text(json.dumps(words, ensure_ascii=False))
        merges.write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
        fast = (
            library.CLIPTokenizerFast(str(vocabulary), str(merges))
            if version("transformers") < "5"
            else library.CLIPTokenizerFast(vocab=str(vocabulary), merges=str(merges))
        )
    raw = fast.backend_tokenizer
    raw.enable_truncation(length)
    # open_clip pads with 0, "!": as transformers' padding it would be a special token, wherever it stands in a text
    raw.enable_padding(pad_id=tokenize.eot_token_id, pad_token=END, length=length)
    raw.normalizer = normalizers.Sequence(cleaning(tokenize.clean_fn.__name__))
    return library.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=length,
        model_input_names=["input_ids"],
    )
