"""One tower as a function of one tensor, the way graph formats hold it: a copy on the CPU, in evaluation mode."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.encoder import Encoder
from clipkit.towers.base import Tower


class Embedder(nn.Module):
    """A tower from what its file takes to unit-norm float32 embeddings (B, D).

    Args:
        tower: The copy.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower.float()

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        found: Tensor = self.tower(x).pooled
        return found


def image_embedder(encoder: Encoder) -> Embedder:
    """Images (B, 3, H, W), normalised floats or uint8, to embeddings."""
    return Embedder(copy.deepcopy(encoder.image).cpu()).eval()


def text_embedder(encoder: Encoder) -> Embedder:
    """Tokens (B, context length) to embeddings, pooled at the end-of-text token by its number where the tokenizer says it.

    open_clip takes the largest number of a text for its end, which holds for OpenAI's vocabulary alone.
    """
    tower = copy.deepcopy(encoder.text).cpu()
    model: Any = tower.model
    end = getattr(encoder.tokenize, "eot_token_id", None)
    if getattr(model, "pool_type", None) == "argmax" and end is not None:
        model.pool_type, model.eos_id = "eos", int(end)
    return Embedder(tower).eval()


def example_image(encoder: Encoder, batch: int, *, uint8: bool = False) -> Tensor:
    """A batch of the shape and type that the image tower takes."""
    shape = (batch, 3, *encoder.preprocess.size)
    return torch.zeros(shape, dtype=torch.uint8) if uint8 else torch.zeros(shape)


def example_text(encoder: Encoder, batch: int, dtype: torch.dtype) -> Tensor:
    """Tokens of real texts."""
    return encoder.tokenize(["a red bicycle", "two dogs on a beach"][:batch]).to(dtype)


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Without the exporter's warnings on its own insides; what it wrote is compared anyway."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
