"""`optim:`: AdamW, its schedule and clipping. The defaults are open_clip's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clipkit.config.base import MaybeZeroLength, NotNegative, Positive, Real, Share, Spec
from clipkit.config.units import Duration

Beta = Annotated[Real, Field(ge=0, lt=1)]


class OptimSpec(Spec):
    """AdamW and its learning rate."""

    lr: NotNegative = Field(5e-4, description="Peak learning rate.")
    weight_decay: NotNegative = Field(
        0.2, description="Decoupled weight decay; not applied to biases, norms, scales and other vectors."
    )
    betas: tuple[Beta, Beta] | None = Field(
        None, description="AdamW's decay rates; unset: 0.9 and 0.98, for ResNets 0.9 and 0.999."
    )
    eps: Positive | None = Field(None, description="AdamW's epsilon; unset: 1e-6, for ResNets 1e-8.")
    warmup: MaybeZeroLength = Field(
        Duration(0, "steps"), description="Linear rise of the learning rate from zero: samples, epochs or steps."
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="What the learning rate does after the warm-up: fall to zero as a cosine, or stay."
    )
    layer_decay: Annotated[Share, Field(gt=0)] = Field(
        1.0,
        description="Factor on the learning rate for each layer between a parameter and its tower's output; 1: none.",
    )
    ema: Annotated[Real, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of a moving average of the weights, kept in the checkpoints and taken by evaluate, embed and export; unset: none.",
    )
    clip_norm: Positive | None = Field(None, description="Largest norm of the whole gradient; unset: not clipped.")
