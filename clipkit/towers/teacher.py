"""A frozen model whose embeddings are computed in the step, for distillation (`CLIP-KD <https://arxiv.org/abs/2307.12732>`_).

It sees the batch that the student sees: the same augmented images, at its own resolution and normalisation, and the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.towers.base import Features
from clipkit.towers.open_clip import OpenClipPair
from clipkit.towers.towers import Towers

_PROBES = ["", "a dog", "A red apple, to the left of 2 green pears.", "naïve café 🍎", "word " * 100]


class Teacher(nn.Module):
    """Towers of another model, frozen and in evaluation mode whatever mode is asked for.

    Args:
        pair: The teacher.
        student: The model that learns, for its tokens.
        names: What its embeddings of images and of texts are called among the features.
        place: What the user called it, for messages.

    Raises:
        ValueError: If the two tokenize otherwise: the teacher could not read the batch's tokens.
    """

    def __init__(
        self,
        pair: OpenClipPair,
        student: OpenClipPair,
        *,
        names: tuple[str, str],
        place: str = "the teacher",
    ) -> None:
        super().__init__()
        theirs, ours = pair.tokenize(_PROBES), student.tokenize(_PROBES)
        if not torch.equal(theirs, ours):
            raise ValueError(
                f"{place} does not tokenize as the student does (contexts of {theirs.shape[1]} and {ours.shape[1]} tokens), so it cannot "
                "read the batch; store its embeddings with the samples (`teacher: [...]`), or take another"
            )
        self.towers = Towers({"image": pair.image, "text": pair.text}).requires_grad_(False)
        self.names = names
        size = pair.preprocess["size"]
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.eval()
        self._trims = pair.text.lengths(theirs) == student.text.lengths(ours)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any], micro_batch: int | None = None) -> dict[str, Features]:
        """The teacher's embeddings, without gradient.

        Args:
            batch: Of the student: ``image`` uint8 (B, 3, H, W), resized here where the teacher's size is another; ``text`` (B, L).
            micro_batch: Samples of a tower's forward, or None for the whole batch at once.

        Returns:
            Features (B, E), unit norm, under ``names``.
        """
        lengths = {key: value for key, value in batch.get("lengths", {}).items() if key == "text" and self._trims}
        seen = {"image": self._sized(batch["image"]), "text": batch["text"], "lengths": lengths}
        self.towers.micro_batch = micro_batch
        features = self.towers(seen)
        return {name: features[field] for name, field in zip(self.names, ("image", "text"), strict=True)}

    def _sized(self, images: Tensor) -> Tensor:
        if tuple(images.shape[2:]) == self.size:
            return images
        with torch.autocast(images.device.type, enabled=False):
            resized = F.interpolate(images.float(), self.size, mode="bicubic", antialias=True, align_corners=False)
        return resized.round_().clamp_(0, 255).to(torch.uint8)
