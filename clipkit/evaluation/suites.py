"""Suites: named lists of sets with the figure that counts and what guessing gives, as YAML files in ``suite_files/``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from clipkit.config.base import Spec, Texts
from clipkit.config.report import Problem, nearest
from clipkit.config.single import validated
from clipkit.config.yaml_file import read_layer
from clipkit.data.atomic import write_atomically
from clipkit.evaluation.places import is_there, joined
from clipkit.evaluation.result import Result, percent

_FOLDER = Path(__file__).resolve().parent / "suite_files"


class Entry(Spec):
    """One set of a suite."""

    task: str = Field(description="The kind of task.")
    metric: Texts = Field(description="The figure that counts; of several, their mean.")
    chance: float | None = Field(None, description="That figure when guessing; unset: one over the number of classes.")
    samples: int | None = Field(None, description="Images of the whole set, where known.")
    data: str | None = Field(None, description="Where it lies, for sets that need no folder.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further keys of the task, such as the name of a set of class names."
    )
    differs: str | None = Field(None, description="In what the figure differs from the suite's own.")
    unsupported: str | None = Field(None, description="Why it cannot be evaluated here.")


class _File(Spec):
    description: str = Field(description="What the suite measures.")
    source: str = Field(description="Where its numbers come from.")
    sets: dict[str, Entry] = Field(description="Its sets by name.")


@dataclass(frozen=True)
class Suite:
    """A suite.

    Args:
        name: Its name.
        description: What it measures.
        source: Where its numbers come from.
        sets: Its sets by name, in order.
    """

    name: str
    description: str
    source: str
    sets: Mapping[str, Entry] = field(repr=False)


def suite_names() -> list[str]:
    """The suites that come with clipkit."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """A suite by name, or from a YAML file of your own.

    Raises:
        ValueError: If there is none, or the file is not one.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = nearest(name, suite_names())
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(
            f"no suite is called {name!r}: {hint}there are {', '.join(suite_names())}, or a .yaml file of your own"
        )
    problems: list[Problem] = []
    layer = read_layer(path.read_text(encoding="utf-8"), str(path), problems)  # no tags, and aliases have a bound
    if layer is None or problems:
        raise ValueError(f"{path}: a suite is a mapping with description, source and sets; {problems[0].message}")
    tree = layer.tree
    found = validated(_File, tree, str(path))
    return Suite(path.stem, found.description, found.source, found.sets)


def find_sets(suite: Suite, root: str | None, cache: Path) -> tuple[dict[str, str], list[str]]:
    """Where the sets of a suite lie.

    Args:
        suite: The suite.
        root: A folder, or the URL of one, that holds ``wds_NAME_test``, ``wds_NAME`` or ``NAME`` (slashes as hyphens).
        cache: Where copies of remote sets are kept.

    Returns:
        DATA by name for those that are there, and the others' names, with the reason where it is another.
    """
    found, missing = {}, []
    for name, entry in suite.sets.items():
        places = [entry.data] if entry.data else [joined(root, folder) for folder in _folders(name)] if root else []
        place = next((place for place in places if is_there(place, cache)), None)
        if entry.unsupported or place is None:
            missing.append(f"{name} ({entry.unsupported})" if entry.unsupported else name)
        else:
            found[name] = place
    return found, missing


def _folders(name: str) -> list[str]:
    plain, last = name.replace("/", "-"), name.rpartition("/")[2]
    return list(dict.fromkeys(form for key in (plain, last) for form in (f"wds_{key}_test", f"wds_{key}", key)))


def summary(suite: Suite, results: Sequence[Result]) -> dict[str, Any]:
    """The figure that counts of each set, and means over the sets that were evaluated.

    ``normalised`` is the mean of (figure - chance) / (1 - chance): 0 for guessing, 1 for perfect.
    """
    sets: dict[str, Any] = {}
    for result in results:
        entry = suite.sets[result.dataset]
        values = [result.metrics.get(name) for name in entry.metric]
        known = [float(value) for value in values if isinstance(value, int | float)]
        value = sum(known) / len(known) if len(known) == len(values) else None
        chance = entry.chance if entry.chance is not None else result.details.get("chance")
        normalised = None if value is None or chance is None else (value - chance) / (1 - chance)
        sets[result.dataset] = {
            "metric": entry.metric,
            "value": value,
            "chance": chance,
            "normalised": normalised,
            "differs": entry.differs,
        }
    return {
        "suite": suite.name,
        "sets": sets,
        "evaluated": len(results),
        "of": len(suite.sets),
        "missing": [name for name in suite.sets if name not in sets],
        "mean": _mean([line["value"] for line in sets.values()]),
        "normalised_mean": _mean([line["normalised"] for line in sets.values()]),
    }


def summary_lines(suite: Suite, found: Mapping[str, Any]) -> list[str]:
    """The summary for people."""
    lines = []
    for name, line in found["sets"].items():
        figure = " and ".join(line["metric"])
        chance = "" if line["chance"] is None else f" (chance {percent(figure, line['chance'])})"
        note = f"; {line['differs']}" if line["differs"] else ""
        lines.append(f"{name}: {figure} {percent(figure, line['value'])}{chance}{note}")
    if found["mean"] is not None:
        whole = f"{found['evaluated']} of {found['of']} sets"
        normalised = found["normalised_mean"]
        shown = "" if normalised is None else f", normalised {100 * normalised:.2f} %"
        lines.append(f"{suite.name}: mean {100 * found['mean']:.2f} %{shown}, over {whole}")
    return lines


def write_summary(suite: Suite, found: Mapping[str, Any], folder: Path) -> Path:
    """Write the summary beside the results, in a folder of its own: CLIP_benchmark reads every JSON file beside them."""
    path = folder / "suites" / f"{suite.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
