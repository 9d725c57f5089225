"""`trainer:`: how long, where and how the run computes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from clipkit.config.base import Interval, Length, LocatedErrors, Spec
from clipkit.config.lightning_keys import ALLOWED, REFUSED
from clipkit.config.units import Count, CountOrAuto, Duration


def _keeps_promises(options: dict[str, Any]) -> dict[str, Any]:
    faults: list[tuple[tuple[str | int, ...], str]] = []
    for key in options:
        if key in REFUSED:
            faults.append(((key,), f"refused: {REFUSED[key]}"))
        elif key not in ALLOWED:
            faults.append(((key,), "is no argument of Lightning's Trainer"))
    if faults:
        raise LocatedErrors(faults)
    return options


def _at_least_one(value: int | str) -> int | str:
    if value == 0:
        raise ValueError("must be 1 or more")
    return value


def _of_a_clock(value: Duration) -> Duration:
    if value.unit != "seconds":
        raise ValueError("is a time, such as '90s', '5m' or '2h'")
    return value


Timeout = Annotated[Interval, AfterValidator(_of_a_clock)]


class TimeoutsSpec(Spec):
    """How long a rank may keep the others waiting before the run ends, naming it; one rank alone is not watched."""

    start: Timeout = Field(
        Duration(600, "seconds"), description="From the start to the end of the first step, compilation included."
    )
    step: Timeout = Field(
        Duration(300, "seconds"),
        description="A step, its data included; also how long a rank may give no sign of life, whatever it is at.",
    )
    pause: Timeout = Field(Duration(7200, "seconds"), description="Between two steps: an evaluation, a checkpoint.")


class TrainerSpec(Spec):
    """Length, hardware and arithmetic of the run."""

    length: Length = Field(description="How much to train: samples, epochs or steps.")
    devices: Annotated[CountOrAuto, AfterValidator(_at_least_one)] = Field(
        "auto", description="Processes per node, one a device; under torchrun or srun it must agree with the launcher."
    )
    nodes: Annotated[Count, Field(ge=1)] = Field(1, description="Machines; more than one needs torchrun or srun.")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="Where to compute.")
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="What several ranks share: ddp, gradients alone; fsdp2, also the memory of the towers' weights, gradients and moments.",
    )
    precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true", description="Arithmetic of the towers; the loss is computed in 32 bits in any case."
    )
    micro_batch: Annotated[CountOrAuto, AfterValidator(_at_least_one)] | None = Field(
        None,
        description="Pairs per rank and tower forward; unset: all at once; auto: the largest that the memory holds. Saves "
        "memory for about one more forward, with the same gradient.",
    )
    allow_batchnorm: bool = Field(
        False, description="Let batch norms, whose statistics are per micro-batch, train in micro-batches all the same."
    )
    compile: bool = Field(False, description="Compile the towers with torch.compile; needs a C++ compiler.")
    deterministic: bool = Field(
        False, description="Deterministic kernels: a resumed run on a GPU ends with the same bits."
    )
    timeouts: TimeoutsSpec = Field(
        default_factory=TimeoutsSpec, description="When several ranks that do not get on give up."
    )
    lightning: Annotated[dict[str, Any], AfterValidator(_keeps_promises)] = Field(
        default_factory=dict,
        description=f"Further arguments of Lightning's Trainer: {', '.join(sorted(ALLOWED))}.",
    )
