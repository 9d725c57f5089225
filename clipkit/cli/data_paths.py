"""What the verbs of ``clipkit data`` take: shards, and the fields of their samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipkit.data.embedded import resolve
from clipkit.data.source import DEFAULT_FIELDS, Place, Source, expand_shards
from clipkit.data.urls import is_remote, shown
from clipkit.evaluation.places import EMBEDDED


def shards_of(path: str, cache: Path) -> list[str]:
    """The shards that a path, a pattern, a folder or ``embedded:NAME`` stands for.

    Raises:
        ValueError: If there are none, or they are not on this machine.
    """
    if is_remote(path):
        raise ValueError(f"{shown(path)}: only shards on this machine are looked at; copy them here, or some of them")
    if not path.startswith(EMBEDDED):
        return expand_shards(path)
    found = resolve(path, cache)
    return expand_shards(str(found / "test")) if isinstance(found, Path) else list(found)


def fields_of(texts: Sequence[str]) -> dict[str, tuple[Place, ...]]:
    """Fields given as ``text=json.caption`` or ``image=jpg,png``; without any, those that a configuration has unsaid.

    Raises:
        ValueError: If one is not of that form, or of an unknown field.
    """
    given: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, places = text.partition("=")
        listed = tuple(place.strip() for place in places.split(",") if place.strip())
        if not listed:
            raise ValueError(f"--fields {text}: write FIELD=PLACE,PLACE such as image=jpg,png or text=json.caption")
        given[name.strip()] = listed
    return Source("data", ("-",), fields=given or DEFAULT_FIELDS).places()
