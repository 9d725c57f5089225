"""`augment:`: random changes of training images, a closed union by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from clipkit.config.base import NotNegative, Positive, Share, Spec, Text


def same_both_ways(value: Any) -> Any:
    """One number stands for both."""
    return [value, value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("the first number must not be above the second")
    return value


ShareAboveZero = Annotated[Share, Field(gt=0)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
CropScale = Annotated[tuple[ShareAboveZero, ShareAboveZero], AfterValidator(_ordered)]
Jitter = tuple[NotNegative, NotNegative, NotNegative, Annotated[NotNegative, Field(le=0.5)]]


class AffineSpec(Spec):
    """A random affine warp; each bound may be left at no warp."""

    degrees: NotNegative = Field(0.0, description="Largest rotation either way, in degrees.")
    translate: Annotated[tuple[Share, Share], BeforeValidator(same_both_ways)] = Field(
        (0.0, 0.0), description="Largest shift, as shares of width and height; one number is both."
    )
    scale: Range = Field((1.0, 1.0), description="Range of the zoom.")
    shear: NotNegative = Field(0.0, description="Largest horizontal shear either way, in degrees.")


class AugmentSpec(Spec):
    """Random changes of training images; drawn by the sample's position, so resumed runs draw the same."""

    kind: Literal["random"] = Field("random", description="Our own: a random crop, and what is switched on.")
    scale: CropScale = Field((0.9, 1.0), description="Range of the crop's share of the image's area.")
    ratio: Range = Field((3 / 4, 4 / 3), description="Range of the crop's width over height.")
    flip: Share = Field(0.0, description="Probability of a mirror image; captions that say left or right forbid it.")
    color_jitter: Jitter | None = Field(
        None, description="Strength of the change in brightness, contrast, saturation and hue (at most 0.5)."
    )
    color_jitter_prob: Share = Field(1.0, description="Probability of the colour jitter, where one is set.")
    grayscale: Share = Field(0.0, description="Probability of a grey image.")
    affine: AffineSpec | None = Field(None, description="A random affine warp.")
    fill: Literal["white", "black"] = Field("white", description="What an affine warp uncovers.")


class OpenClipAugmentSpec(Spec):
    """open_clip's training transform under the names of its `--aug-cfg`: a crop resized bicubically, jitter, grayscale."""

    kind: Literal["open_clip"] = Field(description="open_clip's.")
    scale: CropScale = Field((0.9, 1.0), description="Range of the crop's share of the image's area.")
    color_jitter: Jitter | None = Field(None, description="Strength in brightness, contrast, saturation and hue.")
    color_jitter_prob: Share = Field(0.0, description="Probability of the colour jitter; at 0 there is none.")
    gray_scale_prob: Share = Field(0.0, description="Probability of a grey image.")

    @model_validator(mode="after")
    def _jitter_is_whole(self) -> Self:
        if (self.color_jitter is None) != (self.color_jitter_prob == 0):  # open_clip ignores one without the other
            raise ValueError("color_jitter and color_jitter_prob go together: give both or neither")
        return self


class TimmAugmentSpec(Spec):
    """timm's training transform, on Pillow, one image at a time: several times slower than `random`."""

    kind: Literal["timm"] = Field(description="timm's (open_clip's `use_timm=True`).")
    auto: Text | None = Field(None, description="Policy in timm's words, such as rand-m9-mstd0.5-inc1.")
    scale: CropScale = Field((0.9, 1.0), description="Range of the crop's share of the image's area.")
    ratio: Range = Field((3 / 4, 4 / 3), description="Range of the crop's width over height.")
    flip: Share = Field(0.0, description="Probability of a mirror image.")
    color_jitter: Jitter | None = Field(None, description="Strength of the colour jitter; not beside `auto`.")
    color_jitter_prob: Share = Field(1.0, description="Probability of the colour jitter, where one is set.")
    grayscale: Share = Field(0.0, description="Probability of a grey image.")
    re_prob: Share = Field(0.0, description="Probability that a rectangle is erased with noise.")
    re_count: Annotated[int, Field(strict=True, ge=1)] = Field(1, description="Most rectangles that are erased.")

    @model_validator(mode="after")
    def _jitter_is_used(self) -> Self:
        if self.auto is not None and self.color_jitter is not None and "3a" not in self.auto:
            raise ValueError("timm drops color_jitter beside a policy; leave one of `auto` and `color_jitter` out")
        return self


class EvalAugmentSpec(Spec):
    """No random change: the model's evaluation transform."""

    kind: Literal["eval"] = Field(description="The evaluation transform.")


def _short_augment(value: Any) -> Any:
    """`open_clip` is `{kind: open_clip}`, and without a kind it is ours."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "random"} | value if isinstance(value, dict) else value


AnyAugmentSpec = Annotated[
    Annotated[
        AugmentSpec | OpenClipAugmentSpec | TimmAugmentSpec | EvalAugmentSpec,
        Field(discriminator="kind"),
    ],
    BeforeValidator(
        _short_augment,
        json_schema_input_type=str | AugmentSpec | OpenClipAugmentSpec | TimmAugmentSpec | EvalAugmentSpec,
    ),
]
