"""Pydantic's errors as problems: its paths freed of union tags, its wording made plain."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from clipkit.config.base import LocatedErrors
from clipkit.config.lightning_keys import ALLOWED
from clipkit.config.report import Path, Place, Problem, nearest, place_of, show
from clipkit.config.run import RunConfig

_WORDS = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_type": "must be a mapping",
    "string_pattern_mismatch": "a name holds letters, digits, '-' and '_' only: it is in override paths and metrics",
    "string_too_short": "must not be empty",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
}
_TYPES = frozenset(words for kind, words in _WORDS.items() if kind.endswith("_type"))
ABSENT = object()


def problems_of(
    error: ValidationError, tree: Mapping[str, Any], places: Mapping[Path, Place], default: Place
) -> list[Problem]:
    """Turn a failed validation of ``tree`` into problems, one a path.

    Args:
        error: What pydantic raised.
        tree: What was validated.
        places: Where each part of it was written.
        default: Where to point for what was written nowhere.
    """
    found: dict[Path, Problem] = {}
    for detail in error.errors(include_url=False):
        for problem in _problems_of_one(detail, tree, places, default):
            before = found.get(problem.path)
            if before is not None and before.message != problem.message:  # the branches of a union, each with its wish
                problem = Problem(problem.place, problem.path, f"{before.message}, or {problem.message}", problem.value)
            found[problem.path] = problem
    # of a union that chooses by type, the branch that got further is the one that was meant
    return [fault for fault in found.values() if not (fault.message in _TYPES and _is_above(fault.path, found))]


def _is_above(path: Path, found: Mapping[Path, Problem]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in found)


def _problems_of_one(
    detail: ErrorDetails, tree: Mapping[str, Any], places: Mapping[Path, Place], default: Place
) -> list[Problem]:
    kind, context = detail["type"], detail.get("ctx", {})
    path = _real_path(detail["loc"], tree, missing=kind == "missing")
    located = context.get("error")
    if isinstance(located, LocatedErrors):
        return [_located((*path, *below), message, tree, places, default) for below, message in located.faults]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, "kind")
    place, value = place_of(path, places, default), value_at(tree, path)
    shown = None if value is ABSENT or isinstance(value, dict) else show(value)
    if kind in ("missing", "union_tag_not_found"):
        allowed = _choices(tree, path)
        about = _description(tree, path) or "an item of the list"
        return [Problem(place, path, f"missing: {about}", None, allowed)]
    if kind == "extra_forbidden":
        keys = tuple(sorted(_keys_at(tree, path[:-1])))
        return [Problem(place, path, "unknown key", shown, keys, nearest(path[-1], keys))]
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = _quoted(str(context.get("expected", "") or context.get("expected_tags", "")))
        return [Problem(place, path, "not one of the choices", shown, allowed, nearest(value, allowed))]
    if kind == "value_error":
        return [Problem(place, path, str(located), shown)]
    message = _WORDS.get(kind) or detail["msg"].replace("Input should", "must").replace("Tuple should", "must")
    if kind == "too_short":
        message = "must not be empty"
    elif kind == "too_long":
        message = f"must hold {context['max_length']} values"
    return [Problem(place, path, message, shown)]


def _located(
    path: Path, message: str, tree: Mapping[str, Any], places: Mapping[Path, Place], default: Place
) -> Problem:
    value = value_at(tree, path)
    shown = None if value is ABSENT or isinstance(value, dict) else show(value)
    is_option = path[:2] == ("trainer", "lightning") and "is no argument" in message
    allowed = tuple(sorted(ALLOWED)) if is_option else ()
    return Problem(place_of(path, places, default), path, message, shown, allowed, nearest(path[-1], allowed))


def _real_path(loc: tuple[str | int, ...], tree: Any, *, missing: bool) -> Path:
    """Keep what really leads down the tree: union tags and `[key]` marks lead nowhere."""
    path: list[str | int] = []
    for index, step in enumerate(loc):
        is_key = isinstance(tree, Mapping) and step in tree
        is_item = isinstance(tree, list | tuple) and isinstance(step, int) and step < len(tree)
        if is_key or is_item:
            path.append(step)
            tree = tree[step]
        elif missing and index == len(loc) - 1:
            path.append(step)
    return tuple(path)


def value_at(tree: Any, path: Path) -> Any:
    """Return the value at ``path``; a private marker where there is none."""
    for step in path:
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            return ABSENT
    return tree


def _quoted(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"'([^']*)'", text))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """List the specs that an annotation may hold."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _step(annotation: Any, key: str | int, tree: Any) -> Any:
    """Return the annotation one key further down, choosing a union's branch by the tree's `kind`."""
    if get_origin(annotation) is Annotated:
        return _step(get_args(annotation)[0], key, tree)
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    models = _models(annotation)
    kind = tree.get("kind") if isinstance(tree, Mapping) else None
    chosen = [m for m in models if kind in get_args(getattr(m.model_fields.get("kind"), "annotation", None))] or models
    for model in chosen:
        if isinstance(key, str) and key in model.model_fields:
            return model.model_fields[key].annotation
    return None


def _annotation_at(tree: Any, path: Path) -> tuple[Any, Any]:
    annotation: Any = RunConfig
    for key in path:
        annotation = _step(annotation, key, tree)
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return annotation, tree


def _keys_at(tree: Any, path: Path) -> set[str]:
    annotation, part = _annotation_at(tree, path)
    models = _models(annotation)
    kind = part.get("kind") if isinstance(part, Mapping) else None
    chosen = [m for m in models if kind in get_args(getattr(m.model_fields.get("kind"), "annotation", None))] or models
    return {key for model in chosen for key in model.model_fields}


def _description(tree: Any, path: Path) -> str:
    annotation, _ = _annotation_at(tree, path[:-1])
    for model in _models(annotation):
        if path[-1] in model.model_fields:
            return model.model_fields[str(path[-1])].description or ""
    return ""


def _choices(tree: Any, path: Path) -> tuple[str, ...]:
    """List what a field that is one of a few texts may hold, over all branches of a union."""
    annotation, _ = _annotation_at(tree, path[:-1])
    fields = [model.model_fields[str(path[-1])] for model in _models(annotation) if path[-1] in model.model_fields]
    return tuple(str(choice) for field in fields if _is_literal(field) for choice in get_args(field.annotation))


def _is_literal(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal
