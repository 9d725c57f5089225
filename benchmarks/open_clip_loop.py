"""open_clip's recipe for ``learning.py``: its model, transforms and ``ClipLoss``, and the few lines of its loop, rebuilt.

From ``open_clip_train``'s ``main``, ``train`` and ``scheduler`` (3.3.0), which cannot be called without its data and its options, come: AdamW's
groups (no decay for vectors and for names with ``bn``, ``ln``, ``bias``, ``logit_scale``), the warmed-up cosine set before each step, clipping,
and the clamp of the log scale to [0, ln 100] after each step.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from clipkit.data.embedded import TRAIN_STYLES, captions, concepts, drawings

Transform = Callable[[Image.Image], Tensor]


def build_peer(model: Path) -> tuple[Any, Transform]:
    """A fresh open_clip model of a configuration file, and open_clip's own training transform (RandomResizedCrop, scale 0.9 to 1)."""
    open_clip.add_model_config(model)
    peer, train, _ = open_clip.create_model_and_transforms(model.stem, force_custom_text=True)
    return peer, train


class Drawings(Dataset[tuple[Tensor, Tensor]]):
    """The demo's training pictures, each with one of its captions, drawn anew each time.

    Args:
        tokenize: open_clip's tokenizer.
        transform: open_clip's transform.
    """

    def __init__(self, tokenize: Any, transform: Transform) -> None:
        pictures = {style: drawings(style) for style in TRAIN_STYLES}
        self.samples = [
            (pictures[style][it.hexcode], captions(it))
            for it in concepts()
            if not it.held_out
            for style in TRAIN_STYLES
            if it.hexcode in pictures[style]
        ]
        self.tokenize, self.transform = tokenize, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, texts = self.samples[index]
        return self.transform(Image.open(io.BytesIO(picture))), self.tokenize([random.choice(texts)])[0]


def demo_batches(
    model: Path, transform: Transform, pairs: int, steps: int, *, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches: images (B, 3, H, W), normalised, and tokens (B, L); shuffled each epoch, the last short batch left out."""
    open_clip.add_model_config(model)
    data = Drawings(open_clip.get_tokenizer(model.stem), transform)
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        data, pairs, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True, generator=generator
    )
    done = 0
    while True:
        for image, text in loader:
            if done == steps:
                return
            yield image, text
            done += 1


def train_peer(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    warmup: int,
    clip_norm: float,
    weight_decay: float = 0.2,
) -> list[float]:
    """Train as open_clip does; the loss of each step, in nats."""
    loss_of = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(groups(model, weight_decay), lr=lr, betas=(0.9, 0.98), eps=1e-6)
    losses = []
    model.train()
    for step, (image, text) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, lr, warmup, steps)
        optimizer.zero_grad()
        found = model(image, text)
        image_features, text_features, scale = found if isinstance(found, tuple) else found.values()
        loss = loss_of(image_features, text_features, scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm, norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(float(loss.detach()))
    return losses


def rate(step: int, lr: float, warmup: int, steps: int) -> float:
    """The learning rate of a step, counted from 0: linear up to ``lr``, then half a cosine down."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * lr


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups with open_clip's exclusions."""
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        excluded = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (plain if excluded else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
