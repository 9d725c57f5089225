"""Layers of a configuration: short forms, overrides, and laying one over another with OmegaConf."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from clipkit.config.model import split_model
from clipkit.config.report import Path, Place, Problem, nearest
from clipkit.config.run import RunConfig
from clipkit.config.short_sources import as_sources
from clipkit.config.units import Duration
from clipkit.config.yaml_file import Layer, read_value

SECTIONS = ("data", "optim", "trainer", "checkpoint", "evaluate", "guard", "logging")
NAMED = (("data", "train"), ("data", "val"), ("losses",), ("evaluate", "tasks"))
"""Mappings by name: a null there takes the entry of the layer below away."""

_REFERENCE = re.compile(r"\$\{\.*[A-Za-z_][\w-]*(?:\.[\w-]+|\[\w+\])*\}")
_KEY = re.compile(r"[\w-]+(?:\.[\w-]+|\[[0-9]+\])*")


def drop_unsafe_interpolations(layer: Layer, origin: Place, problems: list[Problem]) -> None:
    """Refuse all `${...}` but plain references: a resolver could read the environment for a stranger."""

    def walk(part: Any, path: Path) -> Any:
        if isinstance(part, dict):
            return {key: walk(value, (*path, key)) for key, value in part.items()}
        if isinstance(part, list):
            return [walk(value, (*path, index)) for index, value in enumerate(part)]
        if isinstance(part, str) and "${" in _REFERENCE.sub("", part) + ("${" if "\\${" in part else ""):
            message = "only plain references such as ${data.batch_size} are allowed, no resolvers and no escapes"
            problems.append(Problem(layer.places.get(path, origin), path, message, repr(part)))
            return None
        return part

    layer.tree = walk(layer.tree, ())


def expand_short_forms(layer: Layer) -> None:
    """Write `model: NAME:tag`, `loss: KIND` and `losses: {NAME: KIND}` out, and drop empty sections."""
    tree = layer.tree

    def write_out(path: Path, value: dict[str, Any]) -> dict[str, Any]:
        layer.places.update({(*path, key): layer.places[path] for key in value if path in layer.places})
        return value

    for section in SECTIONS:
        if section in tree and tree[section] is None:  # `logging:` with nothing below it changes nothing
            del tree[section]
    if isinstance(tree.get("model"), str) and "${" not in tree["model"]:
        tree["model"] = write_out(("model",), dict(split_model(tree["model"])))
    if isinstance(tree.get("loss"), str) and "${" not in tree["loss"]:
        tree["loss"] = write_out(("loss",), {"kind": tree["loss"]})
    losses = tree.get("losses")
    if isinstance(losses, dict):
        for name, loss in losses.items():
            if isinstance(loss, str) and "${" not in loss:
                losses[name] = write_out(("losses", name), {"kind": loss})


def expand_sources(layer: Layer) -> Layer:
    """Write `data: {train: PATH}` out. Only after a layer has been laid over another: a path there replaces all sources below."""
    data = layer.tree.get("data")
    if not isinstance(data, dict):
        return layer
    tree, places = dict(data), dict(layer.places)
    for key in ("train", "val"):
        if isinstance(data.get(key), str) and isinstance(sources := as_sources(data[key]), dict):
            tree[key] = sources
            paths = [
                ("data", key, name, *inner)
                for name, source in sources.items()
                for inner in ((), *((k,) for k in source))
            ]
            places |= {path: places[("data", key)] for path in paths if ("data", key) in places}
    return Layer({**layer.tree, "data": tree}, places)


def move(layer: Layer, old: Path, new: Path) -> None:
    """Let the places below ``old`` answer for ``new`` as well."""
    layer.places.update(
        {new + path[len(old) :]: place for path, place in layer.places.items() if path[: len(old)] == old}
    )


def lay_over(below: Layer, above: Layer) -> Layer:
    """Merge two layers; the upper one wins.

    Where it changes a `kind` (or the model's name), what the lower one said beside the old kind is dropped: those keys
    belong to another class. A null takes a named entry away.
    """
    from omegaconf import OmegaConf

    below, above = _agree_on_losses(below, above)
    trimmed = _without_other_kinds(below.tree, above.tree, ())
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(trimmed), OmegaConf.create(above.tree)))
    assert isinstance(merged, dict)
    for path in NAMED:
        part: Any = merged
        for key in path:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict):
            for name in [name for name, value in part.items() if value is None]:
                del part[name]
    return Layer({str(key): value for key, value in merged.items()}, {**below.places, **above.places})


def _agree_on_losses(below: Layer, above: Layer) -> tuple[Layer, Layer]:
    """Bring `loss` in one layer and `losses` in the other to one form; the upper layer decides."""
    low, high = dict(below.tree), dict(above.tree)
    below, above = Layer(low, dict(below.places)), Layer(high, dict(above.places))
    if isinstance(high.get("losses"), dict) and "loss" not in high and isinstance(low.get("loss"), dict):
        loss = low.pop("loss")
        if loss.get("kind") in high["losses"]:  # losses.infonce.weight=2 over `loss: infonce`
            low["losses"] = {loss["kind"]: loss}
            move(below, ("loss",), ("losses", loss["kind"]))
    elif isinstance(high.get("loss"), dict) and "losses" not in high and isinstance(low.get("losses"), dict):
        if "kind" not in high["loss"] and len(low["losses"]) == 1:  # loss.weight=2 over `losses` with one entry
            name = next(iter(low["losses"]))
            high["losses"] = {name: high.pop("loss")}
            move(above, ("loss",), ("losses", name))
        else:
            low.pop("losses")
    return below, above


def _without_other_kinds(below: Any, above: Any, path: Path) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return below
    tag = "name" if path == ("model",) else "kind"
    if tag in below and above.get(tag, below[tag]) != below[tag]:
        return {}
    return {key: _without_other_kinds(value, above.get(key), (*path, key)) for key, value in below.items()}


def override_layer(
    overrides: Sequence[str] | Mapping[str, Any], below: Mapping[str, Any], problems: list[Problem]
) -> Layer:
    """Turn overrides into one layer; later ones win.

    Args:
        overrides: `key=value` texts, or a mapping of dotted keys to values.
        below: What they will lie over, needed for items of lists (`optim.betas.0=0.8`).
        problems: Receives what is wrong.
    """
    place = Place("override" if isinstance(overrides, Mapping) else "command line")
    layer = Layer()
    if isinstance(overrides, str):
        raise TypeError(f"overrides is a list of key=value texts or a mapping, not one text: {overrides!r}")
    for item in overrides.items() if isinstance(overrides, Mapping) else map(_split_override, overrides):
        key, value = str(item[0]), item[1]
        if isinstance(value, _BadOverride) or not _KEY.fullmatch(key):
            message = (
                value.message if isinstance(value, _BadOverride) else "no key; write key=value, as in optim.lr=1e-3"
            )
            problems.append(Problem(place, tuple(key.split(".")) if key else (), message))
            continue
        path = tuple(re.sub(r"\[([0-9]+)\]", r".\1", key).split("."))
        if path[0] == "base":
            problems.append(Problem(place, path, "`base` is read from the file only"))
        elif path[0] not in RunConfig.model_fields:
            known = sorted(RunConfig.model_fields)
            message = "unknown key"
            problems.append(Problem(place, path, message, repr(value), tuple(known), nearest(path[0], known)))
        else:
            try:
                _set(layer, path, _plain(value), below, place)
            except ValueError as error:
                problems.append(Problem(place, path, str(error)))
    return layer


class _BadOverride:
    def __init__(self, message: str) -> None:
        self.message = message


def _split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        return key, _BadOverride("no value; write key=value, as in optim.lr=1e-3")
    try:
        return key.strip(), read_value(value)
    except ValueError as error:
        return key.strip(), _BadOverride(str(error))


def _set(layer: Layer, path: tuple[str, ...], value: Any, below: Any, place: Place) -> None:
    """Put one override into the layer, copying a list of the lower layer where one of its items is meant."""
    part: dict[str, Any] = layer.tree
    for depth, key in enumerate(path):
        under = below.get(key) if isinstance(below, Mapping) else None
        if not isinstance(under, Mapping):
            layer.places.setdefault(path[: depth + 1], place)
        last = depth == len(path) - 1
        listed = part.get(key, under)
        if isinstance(listed, list) and depth == len(path) - 2 and path[-1].isdigit():
            if int(path[-1]) >= len(listed):
                raise ValueError(f"the list has {len(listed)} items, counted from 0")
            part[key] = [value if index == int(path[-1]) else item for index, item in enumerate(listed)]
            layer.places[(*path[:-1], int(path[-1]))] = place
            return
        if last:
            part[key] = value
            layer.places[path] = place
            _mark_below(layer, path, value, place)
            return
        if isinstance(part.get(key), str) and path[0] in ("model", "loss", "losses"):
            expand_short_forms(layer)
        if isinstance(part.get(key), str) and path[:2] in NAMED:
            raise ValueError(
                f"{'.'.join(path[:2])} is a path already; write {'.'.join(path[:2])}={{NAME: {{...}}}} instead"
            )
        if not isinstance(part.get(key), dict):
            part[key] = {}
        part, below = part[key], under


def _mark_below(layer: Layer, path: Path, value: Any, place: Place) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        layer.places[(*path, key)] = place
        _mark_below(layer, (*path, key), item, place)


def _plain(value: Any) -> Any:
    """Turn what Python code may give as an override into what a file could hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item) for item in value]
    if isinstance(value, Duration) or hasattr(value, "__fspath__"):
        return str(value)
    raise ValueError(f"a {type(value).__name__} cannot stand in a configuration")
