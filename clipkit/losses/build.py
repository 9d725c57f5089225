"""From a loss's configuration to the loss: each spec's factory, by its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from clipkit.config.losses import (
    AnyLossSpec,
    DistillationSpec,
    InfoNCESpec,
    MutualInformationSpec,
    SigmoidSpec,
    SLIPSpec,
    SogCLRSpec,
    TripletSpec,
)
from clipkit.losses.base import Loss
from clipkit.losses.distillation import Distillation
from clipkit.losses.exchange import Exchange, Gather
from clipkit.losses.infonce import InfoNCE
from clipkit.losses.mutual_information import MutualInformation
from clipkit.losses.ring import Ring
from clipkit.losses.sigmoid import Sigmoid, start_bias
from clipkit.losses.slip import SLIP
from clipkit.losses.sogclr import SogCLR
from clipkit.losses.triplet import Triplet

EXCHANGES: dict[str, Callable[[], Exchange]] = {"gather": Gather, "ring": Ring}
ELSEWHERE = {"kind", "weight", "scale", "bias", "exchange", "teacher_model"}
"""Fields of specs that are no plain arguments of their loss."""


class Temperature(Protocol):
    """The scale of a pair of fields and its bias."""

    bias: Any

    def forward(self) -> Tensor:
        """The scale."""


@dataclass(frozen=True)
class Surroundings:
    """What losses need beside their own configuration.

    Args:
        temperature: The scale of a loss's pair; with a number as second argument it has a bias, which starts there unless the model
            brought one, and which trains.
        width: Embedding width of the towers.
        batch_size: Pairs of the global batch.
    """

    temperature: Callable[[Any, float | None], Temperature]
    width: int
    batch_size: int


def build_loss(spec: AnyLossSpec, around: Surroundings) -> Loss:
    """The loss that a spec describes."""
    return FACTORIES[type(spec)](spec, around)


def _arguments(spec: Any) -> dict[str, Any]:
    plain = {name: getattr(spec, name) for name in type(spec).model_fields if name not in ELSEWHERE}
    return plain | ({"exchange": EXCHANGES[spec.exchange]()} if hasattr(spec, "exchange") else {})


def _with_scale(loss: Callable[..., Loss]) -> Callable[[Any, Surroundings], Loss]:
    return lambda spec, around: loss(around.temperature(spec, None).forward, **_arguments(spec))


def _sigmoid(spec: SigmoidSpec, around: Surroundings) -> Loss:
    first = start_bias(around.batch_size) if spec.bias == "batch" else spec.bias
    temperature = around.temperature(spec, first)
    return Sigmoid(temperature.forward, lambda: temperature.bias, **_arguments(spec))


FACTORIES: dict[type[Any], Callable[[Any, Surroundings], Loss]] = {
    InfoNCESpec: _with_scale(InfoNCE),
    SigmoidSpec: _sigmoid,
    DistillationSpec: _with_scale(Distillation),
    TripletSpec: lambda spec, around: Triplet(**_arguments(spec)),
    MutualInformationSpec: _with_scale(MutualInformation),
    SLIPSpec: lambda spec, around: SLIP(around.width, **_arguments(spec)),
    SogCLRSpec: _with_scale(SogCLR),
}
