"""Class names and prompts of well-known sets, by name: data files in ``classnames/``, each with its source.

Class names stand in the order of the labels that CLIP_benchmark's shards of the set have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "classnames"


@dataclass(frozen=True)
class NamedSet:
    """What a file of ``classnames/`` holds.

    Args:
        name: Its name.
        source: Where its words come from, with the licence.
        classnames: By label; None for prompts alone.
        templates: Prompts with ``{c}``.
    """

    name: str
    source: tuple[str, ...]
    classnames: tuple[str, ...] | None
    templates: tuple[str, ...]


@lru_cache
def set_names() -> tuple[str, ...]:
    """The names of all sets, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@lru_cache
def named_set(name: str) -> NamedSet:
    """A set by its name.

    Raises:
        ValueError: If there is none of that name; near ones are named.
    """
    if name not in set_names():
        raise ValueError(f"no class names or templates are called {name!r}: {_near(name)}")
    stored = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    templates = stored["templates"]
    classnames = stored.get("classes")
    return NamedSet(
        name=name,
        source=tuple(stored["source"]),
        classnames=None if classnames is None else tuple(classnames),
        templates=named_set(templates).templates if isinstance(templates, str) else tuple(templates),
    )


def _near(name: str) -> str:
    near = get_close_matches(name, set_names(), n=3)
    return f"near it: {', '.join(near)}" if near else f"there are {', '.join(set_names())}"


def templates_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """Prompts as they are, or those of a set: a text without ``{c}``, alone or as the only entry, is a set's name.

    Raises:
        ValueError: If there is no set of that name.

    >>> templates_of("simple7")[0], templates_of(["a {c}."])
    ('itap of a {c}.', ('a {c}.',))
    """
    entries = (given,) if isinstance(given, str) else tuple(given)
    if len(entries) != 1 or "{c}" in entries[0]:
        return entries
    if entries[0] not in set_names():
        cure = "write {c} where the class name goes, or name a set of templates"
        raise ValueError(f"templates: {entries[0]!r} has no {{c}} and is no set's name ({_near(entries[0])}); {cure}")
    return named_set(entries[0]).templates


def classnames_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """Class names as they are, or those of a set: a text, or a list of one set's name.

    Raises:
        ValueError: If there is no set of that name, or it has prompts alone.

    >>> classnames_of("pcam")
    ('lymph node', 'lymph node containing metastatic tumor tissue')
    """
    if not isinstance(given, str) and not (len(given) == 1 and given[0] in set_names()):
        return tuple(given)
    found = named_set(given if isinstance(given, str) else given[0])
    if found.classnames is None:
        raise ValueError(f"{found.name} holds templates alone, no class names; name a data set, such as imagenet1k")
    return found.classnames
