"""Prompts of each class's own, beside templates that all classes share (CuPL, Pratt et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as shortened  # aliases of YAML may stand for terabytes
from typing import Any

import yaml

from clipkit.evaluation.samples import read_text

OWN = ("class_prompts.json", "class_prompts.yaml")
"""What a set may bring in its folder."""


def own_prompts(folder: Path) -> Path | None:
    """The file of prompts that a set brings, or None."""
    return next((folder / name for name in OWN if (folder / name).is_file()), None)


def class_prompts(given: str | Path | Mapping[str, Any], classnames: Sequence[str]) -> list[tuple[str, ...]]:
    """The prompts of every class, in the order of the labels.

    Args:
        given: Class name to its prompts, or a JSON or YAML file of such a mapping.
        classnames: The classes (C).

    Raises:
        ValueError: If a class has no prompts, prompts belong to no class, or the file is no such mapping.
    """
    place = "prompts" if isinstance(given, Mapping) else str(given)
    table = given if isinstance(given, Mapping) else _read(Path(given))
    lacking = [name for name in classnames if not table.get(name)]
    if lacking:
        cure = "every class needs at least one"
        raise ValueError(
            f"{place}: {len(lacking)} of {len(classnames)} classes have no prompts ({lacking[0]!r}); {cure}"
        )
    strange = [name for name in table if name not in set(classnames)]
    if strange:
        cure = "correct the name or remove the entry"
        raise ValueError(f"{place}: {len(strange)} entries are no class of this set ({strange[0]!r}); {cure}")
    found = []
    for name in classnames:
        texts = [table[name]] if isinstance(table[name], str) else table[name]
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{place}: the prompts of {name!r} are {shortened(texts)}; write a list of texts")
        found.append(tuple(texts))
    return found


def _read(path: Path) -> Mapping[str, Any]:
    try:
        table = yaml.safe_load(read_text(path))  # JSON is YAML
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: neither JSON nor YAML ({error})") from error
    if not isinstance(table, Mapping):
        raise ValueError(f"{path}: a mapping of class names to prompts is needed, got {type(table).__name__}")
    return table
