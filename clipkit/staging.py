"""`data.augment`, `data.views` and `data.stages` as objects, and whether the towers take what they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clipkit.config import (
    AnyAugmentSpec,
    AugmentSpec,
    DataSpec,
    EvalAugmentSpec,
    OpenClipAugmentSpec,
    RunConfig,
    StageSpec,
)
from clipkit.data.augment import Affine, Augment
from clipkit.data.images import Decode
from clipkit.data.stages import IMAGE, Ends, Stage, Transform
from clipkit.data.timm_augment import TimmAugment
from clipkit.data.transforms import Preprocess
from clipkit.encoder import preprocess_of
from clipkit.towers.base import Tokenize
from clipkit.towers.open_clip import OpenClipPair

_MOST_WORDS = 1 << 17  # some 20 MB; a word is then cut anew


@dataclass(frozen=True)
class Tokens:
    """A tokenizer in a loader process that lives for days: open_clip's remembers every word it ever saw.

    Args:
        tokenize: open_clip's.
        length: Tokens of a text, or None for the model's context.
    """

    tokenize: Tokenize
    length: int | None = None

    def __call__(self, texts: list[str]) -> Tensor:
        """Tokens int64 (N, L), the end of text kept where a text is cut."""
        words = getattr(self.tokenize, "cache", None)
        if isinstance(words, dict) and len(words) > _MOST_WORDS:
            for word in [word for word in words if word not in self.tokenize.encoder]:  # type: ignore[attr-defined]
                del words[word]
        if self.length is None:
            return self.tokenize(texts)
        cut: Callable[..., Tensor] = self.tokenize
        return cut(texts, context_length=self.length)


def transform_of(spec: AnyAugmentSpec, preprocess: Preprocess, pair: OpenClipPair, size: tuple[int, int]) -> Transform:
    """The transform that an ``augment:`` names, at a size.

    Raises:
        ValueError: If timm cannot make it.
    """
    if isinstance(spec, EvalAugmentSpec):
        return replace(preprocess, size=size)
    if isinstance(spec, OpenClipAugmentSpec):
        return Augment(
            size,
            scale=spec.scale,
            color_jitter=spec.color_jitter,
            color_jitter_prob=spec.color_jitter_prob,
            grayscale=spec.gray_scale_prob,
            interpolation="bicubic",  # open_clip's training crop is, whatever the model's evaluation does
        )
    given = spec.model_dump(exclude={"kind", "affine"})
    if isinstance(spec, AugmentSpec):
        affine = None if spec.affine is None else Affine(**spec.affine.model_dump())
        return Augment(size, affine=affine, interpolation=preprocess.interpolation, **given)
    mean, std = tuple(pair.preprocess["mean"]), tuple(pair.preprocess["std"])
    return TimmAugment(size, mean, std, interpolation=preprocess.interpolation, **given)


def build_stages(data: DataSpec, pair: OpenClipPair) -> tuple[Stage, list[tuple[Ends, Stage]]]:
    """How samples become batches: at the end of the run, and in the stages before, each with its end.

    Raises:
        ValueError: If a tower does not take the images or texts of a stage.
    """
    preprocess = preprocess_of(pair.preprocess)

    def stage(name: str, spec: StageSpec | None) -> Stage:
        size = (spec and spec.image_size) or preprocess.size
        augments = {IMAGE: (spec and spec.augment) or data.augment, **data.views}
        images = {field: transform_of(augment, preprocess, pair, size) for field, augment in augments.items()}
        shrink_to = max(map(pixels_needed, images.values())) if data.fast_decode else 0
        return Stage(
            images=images,
            tokenize=Tokens(pair.tokenize, spec.text_length if spec else None),
            decode=Decode(policy=data.image_policy, shrink_to=shrink_to),
            name=name,
        )

    for name, spec in data.stages.items():
        if spec.image_size is not None:
            _check(f"data.stages.{name}.image_size", spec.image_size, pair, _try_images)
        if spec.text_length is not None:
            _check(f"data.stages.{name}.text_length", spec.text_length, pair, _try_texts)
    before: list[tuple[Ends, Stage]] = [(spec.until.samples, stage(name, spec)) for name, spec in data.stages.items()]
    return stage("", None), before


def pixels_needed(transform: Transform) -> int:
    """The side of an image of which the smallest crop has as many pixels as are made of it."""
    smallest = 1.0 if isinstance(transform, Preprocess) else transform.scale[0]
    return math.ceil(max(transform.size) / math.sqrt(smallest))


def _try_images(pair: OpenClipPair, size: tuple[int, int]) -> None:
    device = next(pair.image.parameters()).device
    pair.image(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))


def _try_texts(pair: OpenClipPair, length: int) -> None:
    context = Tokens(pair.tokenize)(["a"]).shape[1]
    if not 3 <= length <= context:
        raise ValueError(f"the model's context is {context} tokens, and a text needs at least 3 (start, a word, end)")
    device = next(pair.text.parameters()).device
    pair.text(Tokens(pair.tokenize, length)(["a"]).to(device))


@torch.no_grad()
def _check(key: str, value: Any, pair: OpenClipPair, attempt: Callable[[OpenClipPair, Any], None]) -> None:
    """Let a tower try what a stage gives it, without touching the statistics of batch norms."""
    modes = [(module, module.training) for tower in (pair.image, pair.text) for module in tower.modules()]
    for module, _ in modes:
        module.training = False
    try:
        attempt(pair, value)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        shown = " x ".join(map(str, value)) if isinstance(value, tuple) else value
        raise ValueError(f"{key}={shown}: the model does not take it ({error}); leave it out of this stage") from error
    finally:
        for module, training in modes:
            module.training = training


def check_views(config: RunConfig, *, own_losses: bool) -> None:
    """Whether each view is used: one that is not costs a decode, a transform and a forward for nothing.

    Raises:
        ValueError: If no loss of the configuration names it and there are no others.
    """
    named = [text for loss in config.losses.values() for text in _texts(loss.model_dump())]
    idle = [view for view in config.data.views if view not in named]
    if idle and not own_losses:
        raise ValueError(f"data.views: no loss uses {', '.join(idle)}; name it in a loss, or leave it out")


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
