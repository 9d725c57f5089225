"""A trained image and text tower with all they need to take raw images and texts.

Shapes: N images, M texts, D embedding width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.data.images import image_tensor
from clipkit.data.transforms import Preprocess
from clipkit.towers.base import Features, Tokenize
from clipkit.towers.before_projection import before_projection
from clipkit.towers.open_clip import ImageTower, OpenClipPair, TextTower, open_clip_state_dict, token_counts

_TOKENISED = 8192  # texts of one call of the tokenizer
_BLANK = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

Images = Sequence[Image.Image | Tensor] | Tensor
"""Raw images: each one's own, or those of one size in one tensor uint8 (N, 3, H, W)."""


@dataclass(frozen=True)
class EncoderInfo:
    """Where an encoder comes from and how open_clip writes it down."""

    model: str
    """What the user called it: a name, a run, a folder."""
    pretrained: str | None
    """The tag, file or step of its weights; None for random weights."""
    config: dict[str, Any] = field(repr=False)
    """open_clip's ``model_cfg``."""
    preprocess: dict[str, Any] = field(repr=False)
    """open_clip's preprocessing: size, mean, std, interpolation, resize_mode, fill_color."""
    averaged: bool = False
    """Whether its weights are a run's moving average."""


class Encoder:
    """Raw images and texts to unit-norm embeddings.

    Args:
        image: The image tower.
        text: The text tower.
        tokenize: Texts to tokens.
        log_scale: Logarithm of the inverse temperature.
        bias: Bias of the logits, or None.
        info: Where it comes from.
    """

    def __init__(
        self,
        *,
        image: ImageTower,
        text: TextTower,
        tokenize: Tokenize,
        log_scale: float,
        bias: float | None,
        info: EncoderInfo,
    ) -> None:
        self.image = image
        self.text = text
        self.tokenize = tokenize
        self.log_scale = log_scale
        self.logit_bias = bias
        self.info = info
        self.preprocess = preprocess_of(info.preprocess)
        self.texts_cut = 0
        """How many texts given so far were longer than the context."""

    @classmethod
    def from_pair(cls, pair: OpenClipPair, *, model: str, pretrained: str | None, averaged: bool = False) -> Encoder:
        """The encoder of an open_clip pair, its towers in evaluation mode."""
        info = EncoderInfo(model, pretrained, pair.config, pair.preprocess, averaged)
        return cls(
            image=pair.image.eval(),
            text=pair.text.eval(),
            tokenize=pair.tokenize,
            log_scale=pair.log_scale,
            bias=pair.bias,
            info=info,
        )

    @property
    def logit_scale(self) -> float:
        """The inverse temperature, exponentiated: logits are ``logit_scale * cosine + logit_bias``."""
        return float(torch.tensor(self.log_scale, dtype=torch.float64).exp())

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.image.parameters()).device

    def to(self, device: str | torch.device) -> Encoder:
        """Move the towers and return this encoder."""
        self.image.to(device)
        self.text.to(device)
        return self

    def encode_image(self, images: Images, *, batch_size: int = 64) -> Tensor:
        """Embed images.

        Args:
            images: PIL images, or uint8 tensors (3, H, W) of any size, or one tensor (N, 3, H, W).
            batch_size: Images of one forward.

        Returns:
            (N, D) float32, unit norm, on the CPU.

        Raises:
            ValueError: If it is one image, or what is given are no images.
        """
        return self._encode(self.image, images, self.prepare, batch_size)

    def encode_image_features(self, images: Images, *, batch_size: int = 64) -> Tensor:
        """Features before the projection and embeddings, of one forward.

        Args:
            images: PIL images, or uint8 tensors (3, H, W) of any size, or one tensor (N, 3, H, W).
            batch_size: Images of one forward.

        Returns:
            (N, H + D) float32 on the CPU: the pooled output before the projection, as it is, then the embedding, unit norm.

        Raises:
            ValueError: If it is not known where the model projects.
        """

        def both(x: Tensor) -> Features:
            return Features(torch.cat(before_projection(self.image, x), dim=1))

        found = self._encode(self.image, images if len(images) else _BLANK, self.prepare, batch_size, run=both)
        return found[: len(images)]

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Embed texts; one longer than the context is cut, as open_clip cuts it, and counted in ``texts_cut``.

        Where a shorter sequence is exact, texts of like length share a forward, each trimmed to its own longest.

        Args:
            texts: The texts; a single string is refused.
            batch_size: Texts of one forward.

        Returns:
            (M, D) float32, unit norm, on the CPU.

        Raises:
            ValueError: If it is a single string.
        """
        if isinstance(texts, str):
            raise ValueError(f"encode_text takes a list of texts, got the string {texts!r}; write [{texts!r}]")
        if (odd := next((text for text in texts if not isinstance(text, str)), "")) != "":
            raise ValueError(f"encode_text takes texts, and {odd!r} is none")
        tokens = [self.tokenize(list(texts[at : at + _TOKENISED])) for at in range(0, len(texts), _TOKENISED)]
        rows = torch.cat(tokens) if tokens else torch.empty(0, 1, dtype=torch.int64)
        lengths = self.text.lengths(rows) if len(rows) else []
        full = range(len(rows)) if lengths is None else [i for i, n in enumerate(lengths) if n == rows.shape[1]]
        if full:
            count = token_counts(self.tokenize, [texts[i] for i in full])
            self.texts_cut += sum(tokens > rows.shape[1] for tokens in count)
        order = range(len(rows)) if lengths is None else sorted(range(len(rows)), key=lengths.__getitem__)

        def batch(chosen: Sequence[int]) -> Tensor:
            longest = rows.shape[1] if lengths is None else max(lengths[i] for i in chosen)
            return rows[list(chosen), :longest]

        found = self._encode(self.text, order, batch, batch_size)
        out = torch.empty_like(found)
        out[list(order)] = found
        return out

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosines (N, M) of unit-norm embeddings (N, D) and (M, D)."""
        return image @ text.T

    def prepare(self, images: Images) -> Tensor:
        """Images as the tower takes them: uint8 (N, 3, H, W) after the model's own resizing."""
        if isinstance(images, Tensor) and tuple(images.shape[2:]) == self.preprocess.size:
            return images
        return torch.stack([self.preprocess(_tensor_of(x)) for x in images])

    def state_dict_open_clip(self) -> dict[str, Tensor]:
        """Weights under the keys of open_clip's own class for ``info.config``, on the CPU."""
        state = open_clip_state_dict(self.info.config, self.image, self.text, self.log_scale, self.logit_bias)
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    @torch.no_grad()
    def _encode(
        self,
        tower: nn.Module,
        items: Sequence[Any] | Tensor,
        prepare: Any,
        batch_size: int,
        run: Callable[[Tensor], Features] | None = None,
    ) -> Tensor:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(items, str | Path | Image.Image) or (isinstance(items, Tensor) and items.ndim == 3):
            raise ValueError(f"a list of images is embedded, got one {type(items).__name__}; write [image]")
        parts = []
        with _evaluating(tower):
            for start in range(0, len(items), batch_size):
                x = prepare(items[start : start + batch_size]).to(self.device)
                parts.append((run or tower)(x).pooled.float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, int(self.info.config["embed_dim"]))


def _tensor_of(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if not isinstance(image, Image.Image):
        cure = "open files with PIL.Image.open, and arrays with PIL.Image.fromarray"
        raise ValueError(f"an image is a PIL image or a uint8 tensor (3, H, W), not a {type(image).__name__}; {cure}")
    return image_tensor(image)


def preprocess_of(config: dict[str, Any]) -> Preprocess:
    """The resizing that an open_clip preprocessing configuration describes."""
    size = config["size"]
    return Preprocess(
        size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
        resize_mode=config["resize_mode"],
        interpolation=config["interpolation"],
        fill=config.get("fill_color", 0),
        crop_rounding=config.get("crop_rounding", "even"),
    )


@contextlib.contextmanager
def _evaluating(tower: nn.Module) -> Iterator[None]:
    """The tower in evaluation mode, each module back in its own mode after."""
    modes = [(module, module.training) for module in tower.modules()]
    tower.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
