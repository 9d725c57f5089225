"""What every spec shares."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from clipkit.config.units import Duration, _above_zero, _in_data


class Spec(BaseModel):
    """One part of a configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class LocatedErrors(ValueError):
    """Several faults that one validator found, each with its path below the model that raised it."""

    def __init__(self, faults: list[tuple[tuple[str | int, ...], str]]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in faults))


def as_list(value: Any) -> Any:
    """A text as the only item of a list."""
    return [value] if isinstance(value, str) else value


# Strict: YAML's `true` is no number, and a quoted "1e-3" is a slip.
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Share = Annotated[Real, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[
    list[Text],
    BeforeValidator(as_list, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]
# A name is part of an override's path and of a metric's, so it holds neither a dot nor a slash.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Length = Annotated[Duration, AfterValidator(_in_data), AfterValidator(_above_zero)]
MaybeZeroLength = Annotated[Duration, AfterValidator(_in_data)]
Interval = Annotated[Duration, AfterValidator(_above_zero)]
