"""Configurations as text: resolved YAML, flat keys, differences and the JSON schema."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clipkit.config.run import RunConfig
from clipkit.config.yaml_file import Loader, read_layer


def as_tree(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as dicts, lists and scalars, every default written out."""
    return config.model_dump(mode="json", exclude={"loss"})


def as_yaml(config: RunConfig) -> str:
    """Return YAML that loads back to the same configuration."""
    return yaml.dump(as_tree(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def with_sources(config: RunConfig, sources: Mapping[str, str]) -> str:
    """Return `as_yaml` with a comment behind each value that says where it comes from."""
    text = as_yaml(config)
    layer = read_layer(text, "", [])
    assert layer is not None
    comments = {
        layer.places[tuple(key.split("."))].line: sources[key]
        for key, value in flatten(config).items()
        if key in sources and "\n" not in str(value)  # a text over several lines has no room for a comment
    }
    lines = text.splitlines()
    width = min(max(map(len, lines)), 48)
    marked = [f"{line:<{width}}  # {comments[n]}" if n in comments else line for n, line in enumerate(lines, 1)]
    return "\n".join(marked) + "\n"


def write_config(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Write the resolved configuration as YAML that loads back to the same.

    The file appears whole or not at all, so that a killed run leaves no half of one.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(as_yaml(config), encoding="utf-8")
    part.replace(path)


def flatten(config: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key to value; lists and empty mappings count as values.

    >>> flatten({"optim": {"lr": 0.1, "betas": [0.9, 0.98]}, "tasks": {}})
    {'optim.lr': 0.1, 'optim.betas': [0.9, 0.98], 'tasks': {}}
    """
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", as_tree(config) if isinstance(config, RunConfig) else config)
    return flat


def describe_difference(old: RunConfig | Mapping[str, Any], new: RunConfig | Mapping[str, Any]) -> list[str]:
    """Name what differs, key by key.

    Args:
        old: A configuration.
        new: Another.

    Returns:
        Lines such as `optim.lr: 0.001 -> 0.0005`; none if the two agree.
    """
    before, after = flatten(old), flatten(new)
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        left, right = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if left != right:
            lines.append(f"{key}: {_text(left)} -> {_text(right)}")
    return lines


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of configuration files, for editors; it knows `base` as well."""
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "clipkit configuration"
    schema["properties"]["base"] = {
        "type": "string",
        "description": "A configuration that this one starts from: a path relative to this file, or a shipped name.",
    }
    model = schema["properties"]["model"]
    about = model.pop("description")
    schema["properties"]["model"] = {"anyOf": [{"type": "string"}, model], "description": about}
    schema["required"] = []  # a base or the command line may give what the file leaves out
    return schema


_ABSENT = object()


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return "unset" if value is None else str(value)


class _Dumper(yaml.SafeDumper):
    """Short lists on one line; no aliases; quotes around every text that some reader would take for a number."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {  # noqa: RUF012 - PyYAML's own name
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + Loader.yaml_implicit_resolvers.get(first, [])
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flow = all(isinstance(item, int | float | str) for item in value) and len(str(value)) < 100
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


_Dumper.add_representer(list, _represent_list)
