"""The two files that clip-as-service's ONNX executor takes as ``model_path``: its names of inputs, int32 tokens, and the mask that it sends.

It prepares raw inputs by OpenAI's rules whatever the model, so other encoders are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from clipkit.encoder import Encoder
from clipkit.exporters import onnx_graph
from clipkit.exporters.beside import refuse, write_beside
from clipkit.exporters.candidate import Candidate
from clipkit.exporters.embedders import example_image, example_text, image_embedder, text_embedder
from clipkit.exporters.onnx import OnnxFormat
from clipkit.towers.onnx import IMAGE_FILE, TEXT_FILE

OPSET = 18
CONTEXT = 77
FIXED = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class ClipAsServiceFormat:
    """``visual.onnx`` (``pixel_values``) and ``textual.onnx`` (``input_ids``, ``attention_mask``); any batch size."""

    name: ClassVar[str] = "clip_as_service"
    usage: ClassVar[
        str
    ] = """# flow.yml, executor of clip-as-service's ONNX server; name: a listed model of the same image size
uses: {jtype: CLIPEncoder, metas: {py_modules: [clip_server.executors.clip_onnx]}, with: {name: "ViT-B-32::openai", model_path: FOLDER}}"""

    def refuse(self, encoder: Encoder) -> None:
        """What holds no weights, and what clip-as-service would feed with other pixels or tokens."""
        refuse(encoder, self.name)
        own = encoder.info.preprocess
        for name, fixed in FIXED.items():
            found = list(own[name]) if isinstance(fixed, list) else own[name]
            if found != fixed:
                raise ValueError(
                    f"clip-as-service prepares images with {name} {fixed}, this encoder with {found}; export onnx"
                )
        length = encoder.tokenize([""]).shape[1]
        tokenize: Any = encoder.tokenize
        clean = tokenize.clean_fn.__name__ if hasattr(tokenize, "bpe_ranks") else ""
        if clean != "_clean_lower" or length != CONTEXT:
            by = f" with {clean}" if clean not in ("", "_clean_lower") else ""
            said = f"this encoder has {type(encoder.tokenize).__name__}{by} and {length}"
            raise ValueError(f"clip-as-service has OpenAI's tokenizer and {CONTEXT} tokens, {said}; export onnx")

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write both graphs, and ``open_clip_config.json`` for everyone else."""
        write_beside(encoder, folder)
        tokens = example_text(encoder, 2, torch.int32)
        for embedder, example, given, file in (
            (image_embedder(encoder), example_image(encoder, 2), "pixel_values", IMAGE_FILE),
            (text_embedder(encoder), tokens, "input_ids", TEXT_FILE),
        ):
            graph: Any = onnx_graph.trace(embedder, example, opset=OPSET, names=(given, "features"), static=False)
            if file == TEXT_FILE:  # sent with every text; a native tower has no use for it
                mask = graph.graph.input.add()
                mask.CopyFrom(graph.graph.input[0])
                mask.name = "attention_mask"
            onnx_graph.save(graph, folder / file, {"clipkit.precision": "float32"})

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through onnxruntime, with the rules of ``FIXED``."""
        said = (
            "pictures that were prepared by PIL were compared; clip-as-service itself resizes pictures that it gets as arrays without "
            "antialiasing, which gives other embeddings of large ones"
        )
        candidate = OnnxFormat().load(folder, device)
        return replace(candidate, said=(*candidate.said, said))


FORMAT = ClipAsServiceFormat
