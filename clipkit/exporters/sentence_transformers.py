"""sentence-transformers: the transformers folder, and what ``SentenceTransformer(folder)`` needs on top.

Its ``CLIPModel`` module is deprecated since 5.4; ``Transformer`` takes images and texts by itself, and ``Normalize`` gives them unit norm.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.exporters.candidate import Candidate
from clipkit.exporters.transformers import TransformersFormat, kind_of
from clipkit.towers.transformers_config import quiet


@dataclass(frozen=True)
class SentenceTransformersFormat:
    """What ``SentenceTransformer`` loads, and ``AutoModel`` too."""

    name: ClassVar[str] = "sentence_transformers"
    usage: ClassVar[str] = """from sentence_transformers import SentenceTransformer
model = SentenceTransformer("FOLDER")
image = model.encode([picture])             # a PIL image: (1, D), unit norm
text = model.encode(["a red bicycle"])      # (1, D), unit norm"""

    def refuse(self, encoder: Encoder) -> None:
        """What transformers has no class for."""
        try:
            TransformersFormat().refuse(encoder)
        except ValueError as error:
            raise ValueError(f"{self.name} is transformers' model and more: {error}") from error

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write transformers' files, ``modules.json`` and the modules' configurations, by the library itself."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

        # SigLIP pools at the last position: its texts are padded to the whole context
        padded = {"processing_kwargs": {"text": {"padding": "max_length"}}} if kind_of(encoder) == "siglip" else {}
        with tempfile.TemporaryDirectory() as name, quiet("sentence_transformers"):
            TransformersFormat().write(encoder, Path(name))
            modules: list[Any] = [Transformer(name, **padded), Normalize()]
            whole = SentenceTransformer(modules=modules, device="cpu")
            whole.save(str(folder), create_model_card=False)

    def load(self, folder: Path, device: torch.device) -> Candidate:
        """Through ``SentenceTransformer``, from the folder alone."""
        from sentence_transformers import SentenceTransformer

        with quiet("sentence_transformers"):
            model: Any = SentenceTransformer(str(folder), device=str(device), local_files_only=True)
        beneath = TransformersFormat().load(folder, device)  # what it says of crops holds here too

        def features(**inputs: Tensor) -> Tensor:
            inner = model[0].auto_model
            method = inner.get_image_features if "pixel_values" in inputs else inner.get_text_features
            found = method(**{name: x.to(device) for name, x in inputs.items()})
            unit = model[1]({"sentence_embedding": found if isinstance(found, Tensor) else found.pooler_output})
            embedding: Tensor = unit["sentence_embedding"]
            return embedding

        def encode(inputs: Sequence[Image.Image] | Sequence[str]) -> Tensor:
            found: Tensor = model.encode(
                list(inputs), batch_size=len(inputs), convert_to_tensor=True, show_progress_bar=False
            )
            return found

        return dataclasses.replace(
            beneath,
            image=lambda x: features(pixel_values=x),
            text=lambda x: features(input_ids=x),
            raw_image=encode,
            raw_text=encode,
            versions=beneath.versions | {"sentence-transformers": version("sentence-transformers")},
        )


FORMAT = SentenceTransformersFormat
