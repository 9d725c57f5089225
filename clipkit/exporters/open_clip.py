"""open_clip's own folder: ``open_clip_config.json``, ``open_clip_model.safetensors``, and a tokenizer where it needs one.

``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads it, or ``hf-hub:`` once it is uploaded.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.exporters.candidate import Candidate
from clipkit.towers.model_files import TEXT_CONFIG

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@dataclass(frozen=True)
class OpenClipFormat:
    """What ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads."""

    name: ClassVar[str] = "open_clip"
    usage: ClassVar[str] = """import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")"""

    def refuse(self, encoder: Encoder) -> None:
        """Only a tokenizer that is not open_clip's."""
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        if not isinstance(encoder.tokenize, HFTokenizer | SimpleTokenizer):
            kinds = "open_clip's SimpleTokenizer or HFTokenizer"
            raise ValueError(f"open_clip's format cannot hold a {type(encoder.tokenize).__name__}; it takes {kinds}")

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write configuration, weights (whole, and each tower's alone) and tokenizer."""
        config = copy.deepcopy(encoder.info.config)
        for tower, flag in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
            if flag in config[tower]:  # the weights are here: nothing is to be fetched
                config[tower][flag] = False
        if encoder.logit_bias is not None:
            config.setdefault("init_logit_bias", encoder.logit_bias)  # without it open_clip makes no such parameter
        save_tokenizer(encoder.tokenize, config, folder)
        if "hf_model_name" in config["text_cfg"]:
            text: Any = encoder.text.model
            text.config.save_pretrained(folder / TEXT_CONFIG)  # open_clip itself asks the hub for it
        preprocess = encoder.info.preprocess
        names = ["mean", "std", "interpolation", "resize_mode"] + ["fill_color"] * bool(preprocess.get("fill_color"))
        stored = {"model_cfg": config, "preprocess_cfg": {name: preprocess[name] for name in names}}
        (folder / CONFIG).write_text(json.dumps(stored, indent=2) + "\n")
        towers = {"encoder_image": encoder.image.model, "encoder_text": encoder.text.model}
        _save(encoder.state_dict_open_clip(), folder / WEIGHTS)
        for name, model in towers.items():
            _save(model.state_dict(), folder / f"{name}.safetensors")

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through open_clip; a Hugging Face text tower through ``clipkit.load``, since open_clip asks the hub for its configuration."""
        import open_clip

        place = f"local-dir:{folder}"
        versions = {name: version(name) for name in ("open_clip_torch", "timm")}
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(place, device=device)
            tokenize = open_clip.get_tokenizer(place)
        except (RuntimeError, ValueError, OSError) as error:
            if (folder / TEXT_CONFIG).is_dir():
                return _through_clipkit(folder, device, versions)
            raise ValueError(f"open_clip cannot load its own format again, offline: {error}") from error
        model.eval()

        def encode_image(x: Tensor) -> Tensor:
            return cast(Tensor, model.encode_image(x.to(device), normalize=True))

        def encode_text(x: Tensor) -> Tensor:
            return cast(Tensor, model.encode_text(x.to(device), normalize=True))

        bias = None if model.logit_bias is None else float(model.logit_bias.detach())
        return Candidate(
            image=encode_image,
            text=encode_text,
            raw_image=lambda images: encode_image(torch.stack([preprocess(image) for image in images])),
            raw_text=lambda texts: encode_text(tokenize(list(texts))),
            temperature=(float(model.logit_scale.detach()), bias),
            versions=versions,
        )


FORMAT = OpenClipFormat


def _through_clipkit(folder: Path, device: torch.device, versions: dict[str, str]) -> Candidate:
    from clipkit.loading import load_encoder

    again = load_encoder(folder)[0].to(device)
    said = (
        "open_clip asks the hub for the configuration of this Hugging Face text tower and cannot load the folder offline; "
        "clipkit.load can, and was compared"
    )
    return Candidate(
        image=lambda x: again.image(x.to(device)).pooled,
        text=lambda x: again.text(x.to(device)).pooled,
        raw_image=again.encode_image,
        raw_text=again.encode_text,
        temperature=(again.log_scale, again.logit_bias),
        versions=versions | {"transformers": version("transformers")},
        said=(said,),
    )


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    # cloned, because safetensors refuses tensors that share memory
    save_file({key: value.detach().cpu().clone().contiguous() for key, value in state.items()}, path)
    path.chmod(0o644)  # safetensors makes it private; others of a cluster read it too


def save_tokenizer(tokenize: Any, config: dict[str, Any], folder: Path) -> None:
    """Files of a Hugging Face tokenizer; open_clip's own SimpleTokenizer needs none (and has no ``save_pretrained``)."""
    from open_clip.tokenizer import HFTokenizer

    if isinstance(tokenize, HFTokenizer):
        tokenize.save_pretrained(folder)
        # any name makes open_clip read the tokenizer from the folder itself
        config["text_cfg"].setdefault("hf_tokenizer_name", config["text_cfg"].get("hf_model_name", "local"))
