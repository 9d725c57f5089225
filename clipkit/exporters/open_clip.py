"""open_clip's own folder: ``open_clip_config.json``, ``open_clip_model.safetensors``, and a tokenizer where it needs one.

``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads it, or ``hf-hub:`` once it is uploaded.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.exporters import parity
from clipkit.exporters.folder import new_folder
from clipkit.exporters.parity import Check, ParityReport
from clipkit.exporters.probes import Probes, text_name

CONFIG, WEIGHTS, PARITY = "open_clip_config.json", "open_clip_model.safetensors", "parity.json"


def export_open_clip(
    encoder: Encoder,
    out: str | Path,
    *,
    images: Sequence[Image.Image | Path | str] | None = None,
    texts: Sequence[str] | None = None,
    force: bool = False,
) -> ParityReport:
    """Write a folder that open_clip loads offline, proven to give the encoder's embeddings.

    Args:
        encoder: What to export.
        out: The folder to make.
        images: Real images to compare on, at least 8; None for drawings of the embedded data set.
        texts: Real texts to compare on, at least 8; None for names of that data set.
        force: Whether a folder that holds files may be replaced.

    Returns:
        The comparison, also in the folder as ``parity.json``.

    Raises:
        ParityError: If open_clip's embeddings differ from the encoder's; then there is no folder.
        ValueError: If the folder is taken, the probes are too few, or the format cannot hold the encoder.
    """
    probes = Probes.of(images, texts)
    with new_folder(Path(out), force=force) as folder:
        write_open_clip(encoder, folder)
        report = check_open_clip(encoder, folder, probes)
        report.require()
        report.write(folder / PARITY)
    return report


def write_open_clip(encoder: Encoder, folder: Path) -> None:
    """Write the folder's files, without any proof.

    Raises:
        ValueError: If the tokenizer cannot be saved.
    """
    config = copy.deepcopy(encoder.info.config)
    for tower, flag in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        if flag in config[tower]:  # the weights are here: nothing is to be fetched
            config[tower][flag] = False
    if encoder.logit_bias is not None:
        config.setdefault("init_logit_bias", encoder.logit_bias)  # without it open_clip makes no such parameter
    _save_tokenizer(encoder.tokenize, config, folder)
    preprocess = encoder.info.preprocess
    names = ["mean", "std", "interpolation", "resize_mode"] + ["fill_color"] * bool(preprocess.get("fill_color"))
    stored = {"model_cfg": config, "preprocess_cfg": {name: preprocess[name] for name in names}}
    (folder / CONFIG).write_text(json.dumps(stored, indent=2) + "\n")
    # cloned, because safetensors refuses tensors that share memory
    save_file({key: value.clone() for key, value in encoder.state_dict_open_clip().items()}, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it private; others of a cluster read it too


def check_open_clip(encoder: Encoder, folder: Path, probes: Probes) -> ParityReport:
    """Load the folder through open_clip, offline, and compare it with the encoder.

    Args:
        encoder: What the folder should hold.
        folder: The folder.
        probes: Real inputs.

    Returns:
        The comparison, whether it holds or not.

    Raises:
        ValueError: If open_clip cannot load the folder.
    """
    import open_clip

    place = f"local-dir:{folder}"
    try:
        with offline():
            model, _, preprocess = open_clip.create_model_and_transforms(place, device=encoder.device)
            tokenize = open_clip.get_tokenizer(place)
    except (RuntimeError, ValueError, OSError) as error:
        fetched = encoder.info.config["text_cfg"].get("hf_model_name")
        hint = f" (it asks the hub's cache for the configuration of the text tower {fetched!r})" if fetched else ""
        raise ValueError(f"open_clip cannot load its own format again, offline{hint}: {error}") from error
    model.eval()
    with parity.full_precision(), torch.no_grad():
        image = encoder.encode_image(probes.images)
        checks = _images(encoder, image, model, preprocess, probes) + _texts(encoder, model, tokenize, probes)
        controls = parity.controls(encoder, probes.images, image)
    checks.append(_temperature(encoder, model))
    versions = {name: version(name) for name in ("open_clip_torch", "torch", "timm")}
    counts = {"images": len(probes.images), "flattened": probes.flattened, "texts": len(probes.texts)}
    details = {"probes": counts, "versions": versions}
    return ParityReport("open_clip", encoder.info.model, tuple(checks), controls, details)


def _images(encoder: Encoder, ours: Tensor, model: Any, preprocess: Any, probes: Probes) -> list[Check]:
    def encode(x: Tensor) -> Tensor:
        found: Tensor = model.encode_image(x.to(encoder.device), normalize=True)
        return found

    pixels = encoder.prepare(probes.images).float() / 255
    mean, std = (torch.tensor(model.visual.preprocess_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    floats = (pixels - mean) / std
    checks = []
    for size, seen in parity.BATCHES.items():
        theirs = parity.in_batches(encode, floats[:seen], size)
        name, bound = f"images in batches of {size}", parity.MOST_DIFFERENCE
        checks.append(parity.compare(name, ours[:seen], theirs, probes.image_names[:seen], most_difference=bound))
    raw = torch.stack([preprocess(image) for image in probes.images])
    theirs = parity.in_batches(encode, raw, max(parity.BATCHES))
    name, bound = "images, whole path", parity.LEAST_COSINE
    return [*checks, parity.compare(name, ours, theirs, probes.image_names, least_cosine=bound)]


def _texts(encoder: Encoder, model: Any, tokenize: Any, probes: Probes) -> list[Check]:
    def encode(x: Tensor) -> Tensor:
        found: Tensor = model.encode_text(x.to(encoder.device), normalize=True)
        return found

    names = [text_name(text) for text in probes.texts]
    ours = encoder.encode_text(probes.texts)
    tokens = encoder.tokenize(list(probes.texts))
    checks = []
    for size, seen in parity.BATCHES.items():
        theirs = parity.in_batches(encode, tokens[:seen], size)
        name, bound = f"texts in batches of {size}", parity.MOST_DIFFERENCE
        checks.append(parity.compare(name, ours[:seen], theirs, names[:seen], most_difference=bound))
    theirs = parity.in_batches(encode, tokenize(list(probes.texts)), max(parity.BATCHES))
    name, bound = "texts, whole path", parity.LEAST_COSINE
    return [*checks, parity.compare(name, ours, theirs, names, least_cosine=bound)]


def _temperature(encoder: Encoder, model: Any) -> Check:
    """Scale and bias of the logits, which no embedding shows."""
    scale = float(model.logit_scale.detach())
    bias = None if model.logit_bias is None else float(model.logit_bias.detach())
    ours, theirs = (encoder.log_scale, encoder.logit_bias or 0.0), (scale, bias or 0.0)
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    held = difference <= parity.MOST_DIFFERENCE and (bias is None) == (encoder.logit_bias is None)
    said = f"log scale and bias are {theirs}, not {ours}"
    bound = f"log scale and bias, difference at most {parity.MOST_DIFFERENCE:g}"
    reason = "" if held else said
    return Check("temperature", 1, difference, None, None, None, "logit_scale and logit_bias", bound, held, reason)


def _save_tokenizer(tokenize: Any, config: dict[str, Any], folder: Path) -> None:
    """Files of a Hugging Face tokenizer; open_clip's own SimpleTokenizer needs none (and has no ``save_pretrained``)."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    if isinstance(tokenize, HFTokenizer):
        tokenize.save_pretrained(folder)
        # any name makes open_clip read the tokenizer from the folder itself
        config["text_cfg"].setdefault("hf_tokenizer_name", config["text_cfg"].get("hf_model_name", "local"))
    elif not isinstance(tokenize, SimpleTokenizer):
        kinds = "open_clip's SimpleTokenizer or HFTokenizer"
        raise ValueError(f"open_clip's format cannot hold a {type(tokenize).__name__}; it takes {kinds}")


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """No call leaves the machine: the proof is that the folder alone is enough."""
    from huggingface_hub import constants

    before = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True  # read once, when the library is imported
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before[1]
        if before[0] is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before[0]
