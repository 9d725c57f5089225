"""Numbers with units: counts (`32Ki`, `10M`) and durations (`128M samples`, `2h`).

Nothing here is rounded: a text that does not name a whole count, where one is needed, is an error.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

SUFFIXES = {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}
LARGEST = 10**15  # still exact as a float, so that a duration may hold it

Unit = Literal["samples", "epochs", "steps", "seconds"]

_UNITS: dict[str, tuple[Unit, int]] = {
    **dict.fromkeys(("sample", "samples"), ("samples", 1)),
    **dict.fromkeys(("epoch", "epochs"), ("epochs", 1)),
    **dict.fromkeys(("step", "steps"), ("steps", 1)),
    **dict.fromkeys(("s", "sec", "second", "seconds"), ("seconds", 1)),
    **dict.fromkeys(("m", "min", "minute", "minutes"), ("seconds", 60)),
    **dict.fromkeys(("h", "hour", "hours"), ("seconds", 3600)),
    **dict.fromkeys(("d", "day", "days"), ("seconds", 86400)),
}
_NUMBER = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9]+)?)\s*(.*?)\s*", re.ASCII | re.DOTALL)

COUNT_HELP = "a count such as 4096, 2_000, 1e5, 10M or 32Ki (k = 1,000, Ki = 1,024)"
BYTES_HELP = "bytes, such as 200GB, 64GiB or 500M"
DURATION_HELP = "a number with a unit, such as '128M samples', '30 epochs', '500 steps' or '2h'"


def _split(text: str) -> tuple[Decimal, str] | None:
    """Read the leading number of ``text``; None where there is none, or one out of all bounds."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    number = Decimal(match[1].replace("_", ""))
    if not -15 <= number.adjusted() <= 15:  # before any arithmetic: 1e999999999 is a short text and a long number
        return None
    return number, match[2]


def parse_count(value: object) -> int:
    """Read a whole number, as YAML gives it or as text with a suffix.

    >>> parse_count("32Ki"), parse_count("1.28G"), parse_count(1e5), parse_count("2_000")
    (32768, 1280000000, 100000, 2000)

    Raises:
        ValueError: If ``value`` is no whole number between 0 and 10^15.
    """
    number: Decimal | None = None
    if isinstance(value, str):
        split = _split(value)
        if split is not None and (split[1] == "" or split[1] in SUFFIXES):
            number = split[0] * SUFFIXES.get(split[1], 1)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        number = Decimal(value)
    if number is None:
        raise ValueError(f"expected {COUNT_HELP}")
    if not 0 <= number <= LARGEST:
        raise ValueError(f"expected a count from 0 to {LARGEST:,}")
    if number != number.to_integral_value():
        raise ValueError(f"{number.normalize():f} is not a whole number")
    return int(number)


def parse_bytes(value: object) -> int:
    """Read a number of bytes.

    >>> parse_bytes("200GB"), parse_bytes("64KiB"), parse_bytes("10M"), parse_bytes(4096)
    (200000000000, 65536, 10000000, 4096)

    Raises:
        ValueError: If ``value`` is none.
    """
    try:
        return parse_count(value.strip().removesuffix("B").rstrip() if isinstance(value, str) else value)
    except ValueError:
        raise ValueError(f"expected {BYTES_HELP}") from None


def _count_or_auto(value: object) -> int | str:
    return "auto" if value == "auto" else parse_count(value)


_COUNT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^[0-9][0-9_]*(\.[0-9_]*)?([eE][+-]?[0-9]+)?\s*(Ki|Mi|Gi|Ti|k|M|G|T)?$"},
    ]
}
_BYTES_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^[0-9][0-9_]*(\.[0-9_]*)?([eE][+-]?[0-9]+)?\s*(Ki|Mi|Gi|Ti|k|M|G|T)?B?$"},
    ]
}
Bytes = Annotated[int, BeforeValidator(parse_bytes), WithJsonSchema(_BYTES_SCHEMA)]
Count = Annotated[int, BeforeValidator(parse_count), WithJsonSchema(_COUNT_SCHEMA)]
CountOrAuto = Annotated[
    int | Literal["auto"],
    BeforeValidator(_count_or_auto),
    WithJsonSchema({"anyOf": [{"const": "auto"}, *_COUNT_SCHEMA["anyOf"]]}),
]


@dataclass(frozen=True)
class Duration:
    """A length of training or a stretch of time.

    Args:
        value: How many; whole for samples and steps.
        unit: Of what.
    """

    value: float
    unit: Unit

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read a duration.

        >>> Duration.parse("128M samples"), Duration.parse("2h")
        (Duration(value=128000000.0, unit='samples'), Duration(value=7200.0, unit='seconds'))

        Raises:
            ValueError: If the unit is missing or unknown, or the number is no length.
        """
        if isinstance(text, Duration):
            return text
        if isinstance(text, int | float) and not isinstance(text, bool):
            raise ValueError(f"a bare number has no unit; write {DURATION_HELP}")
        split = _split(text) if isinstance(text, str) else None
        if split is None:
            raise ValueError(f"expected {DURATION_HELP}")
        number, rest = split
        factor, unit_name = _suffix_and_unit(rest)
        if unit_name == "":
            raise ValueError(f"a bare number has no unit; write {DURATION_HELP}")
        if unit_name not in _UNITS:
            raise ValueError(f"{unit_name!r} is no unit; write {DURATION_HELP}")
        unit, scale = _UNITS[unit_name]
        value = number * factor * scale
        if value > LARGEST:
            raise ValueError(f"expected a duration of at most {LARGEST:,} {unit}")
        if unit in ("samples", "steps") and value != value.to_integral_value():
            raise ValueError(f"{value.normalize():f} {unit} is not a whole number of {unit}")
        return cls(float(value), unit)

    def samples(self, batch_size: int, epoch_samples: int | None = None) -> int:
        """Return this duration in samples, over all ranks.

        Args:
            batch_size: Samples of one optimiser step over all ranks.
            epoch_samples: Samples of one epoch over all sources; needed for epochs only.

        Raises:
            ValueError: If this is a stretch of time, or epochs and ``epoch_samples`` is None.
        """
        if self.unit == "seconds":
            raise ValueError(f"'{self}' is a time; it cannot be counted in samples")
        if self.unit == "epochs":
            if epoch_samples is None:
                raise ValueError(
                    f"'{self}' needs the size of an epoch, which is not known here; write samples or steps"
                )
            return round(self.value * epoch_samples)
        return int(self.value) * (batch_size if self.unit == "steps" else 1)

    def steps(self, batch_size: int, epoch_samples: int | None = None) -> int:
        """Return this duration in optimiser steps, the last one perhaps a short one."""
        return -(-self.samples(batch_size, epoch_samples) // batch_size)

    def __str__(self) -> str:
        """The shortest text that reads back as the same duration."""
        value, unit = float(self.value), str(self.unit)
        if unit == "seconds":
            for name, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
                if value >= seconds and value % seconds == 0:
                    return f"{int(value / seconds)}{name}"
            return f"{_plain(value)}s"
        if value == 1:
            return f"1 {unit[:-1]}"
        if value >= 10_000 and value.is_integer():
            for suffix in ("T", "G", "M", "k", "Ti", "Gi", "Mi", "Ki"):
                if value % SUFFIXES[suffix] == 0:
                    return f"{int(value) // SUFFIXES[suffix]}{suffix} {unit}"
        return f"{_plain(value)} {unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "type": "string",
            "pattern": r"^\s*[0-9][0-9_.]*([eE][+-]?[0-9]+)?\s*(Ki|Mi|Gi|Ti|k|M|G|T)?\s*[a-z]+\s*$",
            "examples": ["128M samples", "30 epochs", "500 steps", "2h"],
        }


def _suffix_and_unit(rest: str) -> tuple[int, str]:
    """Cut `M samples` into its factor and its unit; `min` is a unit, not a suffix."""
    if rest in _UNITS:
        return 1, rest
    for suffix, factor in SUFFIXES.items():
        if rest.startswith(suffix) and rest[len(suffix) :].lstrip() in ("", *_UNITS):
            return factor, rest[len(suffix) :].lstrip()
    return 1, rest


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _in_data(duration: Duration) -> Duration:
    if duration.unit == "seconds":
        raise ValueError("a time cannot stand here; write samples, epochs or steps")
    return duration


def _above_zero(duration: Duration) -> Duration:
    if duration.value <= 0:
        raise ValueError("must be above zero")
    return duration
