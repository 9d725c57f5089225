"""The file tree that immich's machine-learning service loads: opset 19, one input at a time, int32 tokens, ``embedding`` of unit norm.

immich has a list of models that it takes: put the folder in its cache under the name of a listed one of the same dimension.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from clipkit.encoder import Encoder
from clipkit.exporters import onnx_graph
from clipkit.exporters.beside import refuse
from clipkit.exporters.candidate import Candidate
from clipkit.exporters.embedders import example_image, example_text, image_embedder, text_embedder
from clipkit.exporters.transformers import crops_elsewhere, fast_tokenizer, refuse_tokenizer
from clipkit.exporters.transformers_cleaning import SAID
from clipkit.towers.immich import IMAGE, TEXT, ImmichTokenizer
from clipkit.towers.onnx import OnnxModel

OPSET = 19


@dataclass(frozen=True)
class ImmichFormat:
    """``config.json``, ``visual/`` and ``textual/``, each with ``model.onnx`` and what raw inputs need."""

    name: ClassVar[str] = "immich"
    usage: ClassVar[str] = """import onnxruntime
visual = onnxruntime.InferenceSession("FOLDER/visual/model.onnx")      # image (1, 3, S, S) float32 -> embedding (1, D)
textual = onnxruntime.InferenceSession("FOLDER/textual/model.onnx")    # text (1, context length) int32 -> embedding (1, D)"""

    def refuse(self, encoder: Encoder) -> None:
        """What holds no weights, a resize that immich has not, and a cleaning of texts that its tokenizers have not."""
        refuse(encoder, self.name)
        refuse_tokenizer(encoder)
        height, width = encoder.preprocess.size
        mode = encoder.info.preprocess["resize_mode"]
        if height != width or mode not in ("shortest", "squash"):
            raise ValueError(
                f"immich takes square images by shortest or squash; this encoder {height} x {width} by {mode}"
            )

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write both graphs, the configuration and the tokenizer."""
        config, tokenize = copy.deepcopy(encoder.info.config), fast_tokenizer(encoder)
        tokens = example_text(encoder, 1, torch.int32)
        config["text_cfg"]["context_length"] = tokens.shape[1]
        # its own canonicalisation has another rule for "_"; the tokenizer's files do all of it
        config["text_cfg"].get("tokenizer_kwargs", {}).pop("clean", None)
        config["init_logit_scale"] = encoder.log_scale  # immich has no use for it, who measures the files has
        if encoder.logit_bias is not None:
            config["init_logit_bias"] = encoder.logit_bias
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for embedder, example, name, given in (
            (image_embedder(encoder), example_image(encoder, 1), IMAGE, "image"),
            (text_embedder(encoder), tokens, TEXT, "text"),
        ):
            graph = onnx_graph.trace(embedder, example, opset=OPSET, names=(given, "embedding"), static=True)
            onnx_graph.save(graph, folder / name / "model.onnx", {"clipkit.precision": "float32"})
        (folder / IMAGE / "preprocess_cfg.json").write_text(json.dumps(encoder.info.preprocess, indent=2) + "\n")
        tokenize.save_pretrained(folder / TEXT)
        place = folder / TEXT / "tokenizer_config.json"
        stored = json.loads(place.read_text())
        stored["pad_token"] = tokenize.convert_ids_to_tokens(_pad(encoder, tokenize))  # immich has no other way to ask
        place.write_text(json.dumps(stored, indent=2) + "\n")

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through onnxruntime and tokenizers, step by step as immich does."""
        image, text = (OnnxModel(folder / name / "model.onnx") for name in (IMAGE, TEXT))
        own = json.loads((folder / IMAGE / "preprocess_cfg.json").read_text())
        side = own["size"][0] if isinstance(own["size"], list) else own["size"]
        crop = own["resize_mode"] == "shortest"
        config = json.loads((folder / "config.json").read_text())
        tokenize = ImmichTokenizer(folder, config)

        return Candidate(
            image=image,
            text=text,
            raw_image=lambda images: image(
                torch.from_numpy(np.stack([_pixels(x, own, side, crop=crop) for x in images]))
            ),
            raw_text=lambda texts: text(tokenize(list(texts))),
            batches=(1,),
            versions={name: version(name) for name in ("onnx", "onnxruntime", "tokenizers")},
            temperature=(config["init_logit_scale"], config.get("init_logit_bias")),
            shifts=lambda x: crop and crops_elsewhere(x, side),
            said=((_CROP,) if crop else ()) + (SAID,),
        )


FORMAT = ImmichFormat
_CROP = "immich rounds an odd margin of the centre crop down where open_clip rounds to even: one pixel beside it"


def _pad(encoder: Encoder, tokenize: Any) -> int:
    if hasattr(encoder.tokenize, "bpe_ranks"):
        return 0  # open_clip's own
    padding = tokenize.backend_tokenizer.padding
    return int(padding["pad_id"]) if padding and tokenize.pad_token_id is None else int(tokenize.pad_token_id or 0)


def _pixels(image: Image.Image, own: dict[str, Any], side: int, *, crop: bool) -> Any:
    image, way = image.convert("RGB"), Image.Resampling[own["interpolation"].upper()]
    short = min(image.size)
    size = (int(image.width / short * side), int(image.height / short * side)) if crop else (side, side)
    image = image.resize(size, way)
    left, top = (int(x / 2 - side / 2) for x in image.size)
    values = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    mean, std = (np.array(own[name], dtype=np.float32) for name in ("mean", "std"))
    return ((values - mean) / std).transpose(2, 0, 1)
