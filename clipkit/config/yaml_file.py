"""YAML with the place of every key: what OmegaConf's loader reads, but with marks, all duplicates, and no tags."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from clipkit.config.report import Path, Place, Problem

MOST_NODES = 100_000  # after aliases are expanded: a short file must not become a huge tree

_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: 1e-3 is a number, while `no`, 12:30 and 2024-01-01 are texts."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name


Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^([Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


@dataclass
class Layer:
    """One layer of a configuration: a tree of dicts, lists and scalars, and where each of its parts stands."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)


def read_layer(text: str, name: str, problems: list[Problem]) -> Layer | None:
    """Read one YAML file.

    Args:
        text: Its content.
        name: What to call it in messages.
        problems: Receives what is wrong.

    Returns:
        The layer; None if the text is no YAML mapping, so that nothing can be read from it.
    """
    reader = _Reader(name, problems)
    loader = Loader("")
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        tree = reader.read(node, (), loader) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.append(Problem(reader.place(mark), (), f"not YAML: {error.problem or error.context}"))
        return None
    except yaml.YAMLError as error:
        problems.append(Problem(Place(name), (), f"not YAML: {str(error).splitlines()[0]}"))
        return None
    except RecursionError:
        problems.append(Problem(Place(name), (), "nested too deeply"))
        return None
    finally:
        loader.dispose()
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        problems.append(Problem(Place(name, 1, 1), (), "must be a mapping of keys to values"))
        return None
    return Layer(tree, reader.places)


def read_value(text: str) -> Any:
    """Read the value of a `key=value` override.

    Raises:
        ValueError: If it is no YAML.
    """
    problems: list[Problem] = []
    layer = read_layer(f"value: {text}", "", problems)  # as a value in a file: `a: b` is then as wrong as there
    if layer is None or problems:
        raise ValueError(f"the value is {problems[0].message}; put it in quotes")
    return layer.tree["value"]


class _Reader:
    """Turns nodes into plain values, noting the place of each."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.name = name
        self.problems = problems
        self.places: dict[Path, Place] = {}
        self.open: list[yaml.Node] = []
        self.count = 0

    def place(self, mark: Any) -> Place:
        return Place(self.name, mark.line + 1, mark.column + 1) if mark is not None else Place(self.name)

    def read(self, node: yaml.Node, path: Path, loader: Loader) -> Any:
        self.count += 1
        if self.count > MOST_NODES:
            raise yaml.MarkedYAMLError(
                None, None, f"aliases expand to more than {MOST_NODES:,} values", node.start_mark
            )
        if any(node is outer for outer in self.open):
            raise yaml.MarkedYAMLError(None, None, "an alias holds itself", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, loader)
        self.open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                if node.tag != "tag:yaml.org,2002:seq":
                    return self._refuse_tag(node, path)
                for index, item in enumerate(node.value):
                    self.places[(*path, index)] = self.place(item.start_mark)
                return [self.read(item, (*path, index), loader) for index, item in enumerate(node.value)]
            if not isinstance(node, yaml.MappingNode) or node.tag != "tag:yaml.org,2002:map":
                return self._refuse_tag(node, path)
            pairs = self._pairs(node, path)
            for key, (key_node, _) in pairs.items():
                self.places[(*path, key)] = self.place(key_node.start_mark)
            return {key: self.read(value, (*path, key), loader) for key, (_, value) in pairs.items()}
        finally:
            self.open.pop()

    def _pairs(self, node: yaml.MappingNode, path: Path) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Collect a mapping's entries; its own keys win over those merged in with `<<`."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(source, yaml.MappingNode) or any(source is outer for outer in self.open):
                        raise yaml.MarkedYAMLError(None, None, "<< takes another mapping", value.start_mark)
                    self.open.append(source)
                    merged = self._pairs(source, path) | merged
                    self.open.pop()
            elif not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem(self.place(key.start_mark), path, "a key must be a plain text"))
            elif key.value in own:
                first = own[key.value][0].start_mark
                message = f"the key stands twice; first in line {first.line + 1 if first else '?'}"
                self.problems.append(Problem(self.place(key.start_mark), (*path, key.value), message))
            else:
                own[key.value] = (key, value)
        return merged | own

    def _scalar(self, node: yaml.ScalarNode, path: Path, loader: Loader) -> Any:
        if node.tag == _TEXT:
            return node.value
        try:
            if node.tag == "tag:yaml.org,2002:int":
                return int(node.value.replace("_", ""))  # 010 is ten, as in YAML 1.2
            if node.tag in {f"tag:yaml.org,2002:{kind}" for kind in ("float", "bool", "null")}:
                return loader.construct_object(node)
        except (ValueError, KeyError):
            self.problems.append(Problem(self.place(node.start_mark), path, f"cannot be read: {node.value[:40]!r}"))
            return None
        return self._refuse_tag(node, path)

    def _refuse_tag(self, node: yaml.Node, path: Path) -> None:
        self.problems.append(Problem(self.place(node.start_mark), path, f"tags are not allowed here: {node.tag}"))
