"""From a file, its base and overrides to a checked configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from clipkit.config.base import LocatedErrors
from clipkit.config.catalog import find, shipped
from clipkit.config.faults import ABSENT, problems_of, value_at
from clipkit.config.layers import (
    drop_unsafe_interpolations,
    expand_short_forms,
    expand_sources,
    lay_over,
    move,
    override_layer,
)
from clipkit.config.losses import move_loss
from clipkit.config.report import ConfigError, Path, Place, Problem, nearest, place_of, show
from clipkit.config.run import RunConfig
from clipkit.config.write import flatten
from clipkit.config.yaml_file import Layer, read_layer

Overrides = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A configuration and where each of its values comes from.

    Args:
        config: The configuration.
        sources: Dotted key of every value to `file:line:column`, `command line`, `override` or `default`.
    """

    config: RunConfig
    sources: dict[str, str]


def load_config(path_or_name: str | FilePath, overrides: Overrides = ()) -> RunConfig:
    """Read a configuration.

    Args:
        path_or_name: A YAML file, or the name of a shipped configuration; a file that exists wins.
        overrides: `key=value` texts as on the command line, or a mapping such as `{"optim.lr": 1e-3}`.

    Raises:
        ConfigError: With everything that is wrong with it.
    """
    return load_with_sources(path_or_name, overrides).config


def load_with_sources(path_or_name: str | FilePath, overrides: Overrides = ()) -> Loaded:
    """Read a configuration as `load_config` does, and keep where each value comes from."""
    problems: list[Problem] = []
    file, below = _read_files(path_or_name, problems)
    below = expand_sources(below)
    above = override_layer(overrides, below.tree, problems)
    drop_unsafe_interpolations(above, Place("command line"), problems)
    expand_short_forms(above)
    merged = _resolve(expand_sources(lay_over(below, above)), Place(file), problems)
    config = _validate(merged, Place(file), problems)
    if config is None or problems:
        raise ConfigError(file, problems)
    return Loaded(config, _sources(config, merged))


def _read_files(path_or_name: str | FilePath, problems: list[Problem]) -> tuple[str, Layer]:
    """Read the file and the one that its `base` names; return how to call it and the two merged."""
    file = find(path_or_name)
    if file is None:
        raise ConfigError(str(path_or_name), [_not_found(Place(str(path_or_name)), (), str(path_or_name))])
    layer = _read(file, problems)
    if layer is None:
        raise ConfigError(str(file), problems)
    base = layer.tree.pop("base", None)
    if base is None:
        return str(file), layer
    place = layer.places[("base",)]
    base_file = find(base, file.parent) if isinstance(base, str) else None
    if base_file is None:
        problems.append(_not_found(place, ("base",), base))
        return str(file), layer
    base_layer = _read(base_file, problems)
    if base_layer is None:
        raise ConfigError(str(file), problems)
    if "base" in base_layer.tree:
        del base_layer.tree["base"]
        message = f"a base has no base of its own; it is the base of {file}"
        problems.append(Problem(base_layer.places[("base",)], ("base",), message))
    return str(file), lay_over(base_layer, layer)


def _read(file: FilePath, problems: list[Problem]) -> Layer | None:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(Place(str(file)), (), f"cannot be read: {error}"))
        return None
    layer = read_layer(text, str(file), problems)
    if layer is not None:
        drop_unsafe_interpolations(layer, Place(str(file)), problems)
        expand_short_forms(layer)
    return layer


def _not_found(place: Place, path: Path, reference: object) -> Problem:
    names = tuple(shipped())
    message = (
        "no such file, and no shipped configuration of that name" if isinstance(reference, str) else "must be a text"
    )
    return Problem(place, path, message, show(reference) if path else None, names, nearest(reference, names))


def _resolve(layer: Layer, default: Place, problems: list[Problem]) -> Layer:
    """Replace references by what they refer to; report those that lead nowhere and values left open as `???`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.create(layer.tree)
    tree = layer.tree
    for path, text in _texts(layer.tree, ()):
        place = place_of(path, layer.places, default)
        if text == "???":
            key = ".".join(map(str, path))
            message = f"left open by this configuration; give it on the command line: {key}=VALUE"
            problems.append(Problem(place, path, message))
        elif "${" in text:
            node: Any = config
            try:
                for step in path:
                    node = node[step]
            except (OmegaConfBaseException, RecursionError) as error:
                message = f"the reference leads nowhere: {str(error).splitlines()[0]}"
                problems.append(Problem(place, path, message, show(text)))
                continue
            value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
            if any("${" in inner for _, inner in _texts({"": value}, ())):
                problems.append(Problem(place, path, "references must not put a new ${...} together", show(text)))
            else:
                tree = _with(tree, path, value)
    return Layer(tree, layer.places)


def _texts(part: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield every text below ``part`` with its path."""
    if isinstance(part, str):
        yield path, part
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in items:
        yield from _texts(value, (*path, key))


def _with(tree: Any, path: Path, value: Any) -> Any:
    """Return a copy of ``tree`` with another value at ``path``."""
    if not path:
        return value
    if isinstance(tree, list):
        return [_with(item, path[1:], value) if index == path[0] else item for index, item in enumerate(tree)]
    return {**tree, path[0]: _with(tree[path[0]], path[1:], value)}


def _without(tree: Any, path: Path) -> Any:
    """Return a copy of ``tree`` that lacks ``path``; where that is an item of a list, the list."""
    if not path or not isinstance(tree, dict) or path[0] not in tree:
        return tree
    below = tree[path[0]]
    if len(path) == 1 or not isinstance(below, dict):
        return {key: value for key, value in tree.items() if key != path[0]}
    return {**tree, path[0]: _without(below, path[1:])}


def _validate(layer: Layer, default: Place, problems: list[Problem]) -> RunConfig | None:
    """Check the merged tree, adding to ``problems`` all that is wrong, also what only shows once the rest is right.

    Pydantic runs the checks over several parts only when every part is right by itself. So what is wrong is taken out
    and the rest checked again; a complaint that follows from the taking out is not passed on.
    """
    tree, written = _one_form_of_losses(layer, default, problems)
    blamed = {fault.path for fault in problems}
    for path in blamed:
        tree = _without(tree, path)
    related = _same_branch
    config: RunConfig | None = None
    while True:
        try:
            config = RunConfig.model_validate(tree)
            break
        except ValidationError as error:
            found = problems_of(error, tree, layer.places, default)
            fresh = [fault for fault in found if not any(related(fault.path, path) for path in blamed)]
            problems += fresh
            removable = [fault.path for fault in fresh if tree != _without(tree, fault.path)]
            if not removable:
                break
            for path in removable:
                tree = _without(tree, path)
            blamed |= {fault.path for fault in fresh if fault.message != "unknown key"}
            related = _same_section
    problems[:] = [_as_written(fault, written) for fault in problems]
    return config


def _one_form_of_losses(layer: Layer, default: Place, problems: list[Problem]) -> tuple[dict[str, Any], Path | None]:
    """Move `loss` to `losses`; return the tree and, if that moved anything, the path it now has."""
    tree: dict[str, Any] = layer.tree
    try:
        moved = move_loss(tree)
    except LocatedErrors as error:
        problems += [Problem(place_of(path, layer.places, default), path, text) for path, text in error.faults]
        return _without(tree, ("loss",)), None
    if moved is tree:
        return tree, None
    path: Path = ("losses", next(iter(moved["losses"])))
    move(layer, ("loss",), path)
    return moved, path


def _same_branch(path: Path, blamed: Path) -> bool:
    short = min(len(path), len(blamed))
    return path[:short] == blamed[:short]


def _same_section(path: Path, blamed: Path) -> bool:
    return _same_branch(path, blamed) or path[:-1] == blamed[:-1]


def _as_written(fault: Problem, moved: Path | None) -> Problem:
    """Show `losses.KIND` as the `loss` that was written."""
    return replace(fault, path=("loss", *fault.path[2:])) if moved and fault.path[:2] == moved else fault


def _sources(config: RunConfig, layer: Layer) -> dict[str, str]:
    tree, _ = _one_form_of_losses(layer, Place(""), [])
    sources: dict[str, str] = {}
    for key in flatten(config):
        path = tuple(key.split("."))
        given = value_at(tree, path) is not ABSENT
        sources[key] = str(place_of(path, layer.places, Place("default"))) if given else "default"
    return sources
