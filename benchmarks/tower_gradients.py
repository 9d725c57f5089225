"""Are the gradients of micro-batched towers those of the whole batch? The towers' part of ``gradients.py``.

With patch dropout on, against the very same micro-batches without checkpoints: features must be equal in every bit, and
``micro_batch_error`` is the largest gradient difference over the largest gradient of that tensor. Without dropout in float64, against one
big batch: ``micro_batch_error_fp64``. Under bf16 autocast, error against float32 at 64 micro-batches over that at one:
``micro_batch_bf16_growth``; weights cast once for all micro-batches would add their gradients up in bf16, and the ratio would grow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.losses.infonce import infonce
from clipkit.towers.base import Features, Tower
from clipkit.towers.open_clip import pair_from_config
from clipkit.towers.towers import Towers

PAIRS, PARTS, CONTEXT, WORDS = 128, 64, 16, 256
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2},
}
Gradients = dict[str, Tensor]


class Unchecked(Towers):
    """The same micro-batches, all of whose activations stay."""

    @staticmethod
    def _checkpointed(tower: Tower, chunk: Tensor) -> Features:
        return tower(chunk)  # type: ignore[no-any-return]


def batch() -> dict[str, object]:
    """Random images and texts of random length."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, WORDS - 1, (PAIRS, CONTEXT), generator=generator)
    ends = torch.randint(2, CONTEXT, (PAIRS,), generator=generator)
    tokens[torch.arange(CONTEXT) > ends[:, None]] = 0
    tokens[torch.arange(PAIRS), ends] = WORDS - 1
    images = torch.randint(0, 256, (PAIRS, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return {"image": images, "text": tokens}


def gradients(
    kind: type[Towers],
    micro_batch: int | None,
    *,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    bf16: bool = False,
) -> tuple[Gradients, Gradients]:
    """Features, and gradients of all parameters."""
    torch.manual_seed(0)
    pair = pair_from_config(MODEL)
    if dropout:
        pair.image.drop_patches(dropout)
    towers = kind({"image": pair.image, "text": pair.text}, micro_batch=micro_batch).to(dtype).train()
    given = batch()
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):  # as Lightning's bf16-mixed does
        features = {name: found.pooled for name, found in towers(given | {"lengths": towers.lengths(given)}).items()}
    image, text = (features[name].to(torch.promote_types(dtype, torch.float32)) for name in ("image", "text"))
    infonce(image, text, image.new_tensor(14.0)).backward()  # type: ignore[no-untyped-call]
    return features, {name: p.grad.double() for name, p in towers.named_parameters() if p.grad is not None}


def difference(got: Gradients, want: Gradients) -> float:
    """Largest over all tensors."""
    return max(float((got[name] - value).abs().max() / value.abs().max()) for name, value in want.items())


def root_mean_square(got: Gradients, want: Gradients) -> float:
    """Norm of the difference over the norm, of all parameters together."""
    apart = sum(float((got[name] - value).square().sum()) for name, value in want.items())
    return float((apart / sum(float(value.square().sum()) for value in want.values())) ** 0.5)


def measure() -> dict[str, float]:
    """The three figures.

    Raises:
        AssertionError: If checkpointed features differ in a bit.
    """
    size = PAIRS // PARTS
    features, ours = gradients(Towers, size, dropout=0.5)
    same, plain = gradients(Unchecked, size, dropout=0.5)
    assert all(torch.equal(features[name], same[name]) for name in features), "checkpointing changed a feature"
    _, whole64 = gradients(Towers, None, dtype=torch.float64)
    _, parts64 = gradients(Towers, size, dtype=torch.float64)
    _, exact = gradients(Towers, None)
    one, many = (root_mean_square(gradients(Towers, micro, bf16=True)[1], exact) for micro in (None, size))
    return {
        "micro_batch_error": difference(ours, plain),
        "micro_batch_error_fp64": difference(parts64, whole64),
        "micro_batch_bf16_growth": many / one,
    }
