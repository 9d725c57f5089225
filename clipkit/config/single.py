"""One specification by itself, from values that no file holds: the command line's and Python's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from clipkit.config.base import Spec
from clipkit.config.report import nearest

S = TypeVar("S", bound=Spec)


def validated(spec: type[S], values: Mapping[str, Any], place: str) -> S:
    """A specification made of values.

    Args:
        spec: Which one.
        values: Its keys.
        place: What messages call it.

    Raises:
        ValueError: With every key that is unknown, missing or ill-valued.
    """
    try:
        return spec.model_validate(dict(values))
    except ValidationError as error:
        lines = [_line(spec, detail) for detail in error.errors(include_url=False)]
        raise ValueError(f"{place}: {'; '.join(lines)}") from None


def _line(spec: type[Spec], detail: Any) -> str:
    path = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        near = nearest(path, spec.model_fields)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"there is no option {path!r}{hint} (options: {', '.join(spec.model_fields)})"
    return f"{path} = {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
