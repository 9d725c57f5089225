"""Results as files that ``clip_benchmark build`` reads too, and as a table of percents."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from clipkit.data.atomic import write_atomically
from clipkit.evaluation.evaluator import Figures

_COUNTS = ("samples", "captions")  # numbers of things, not fractions


@dataclass(frozen=True)
class Result:
    """The figures of one encoder on one set.

    Args:
        dataset: Name of the set.
        model: Name of the model.
        pretrained: Tag or step of its weights; the empty text for random weights (CLIP_benchmark joins it as text).
        task: ``zeroshot_classification``, ``zeroshot_retrieval``, ...
        metrics: The figures, fractions of one.
        details: Whatever else the reader should know, JSON types only.
    """

    dataset: str
    model: str
    pretrained: str
    task: str
    metrics: Figures
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The object that a file holds; a figure that is no number becomes None.

        >>> Result("digits", "ViT-B-32", "", "zeroshot_classification", {"acc1": float("nan")}).to_dict()["metrics"]
        {'acc1': None}
        """
        main = {"dataset": self.dataset, "model": self.model, "pretrained": self.pretrained, "task": self.task}
        clean: dict[str, Any] = _without_nan(main | {"metrics": self.metrics} | self.details)
        return clean

    def write(self, path: Path) -> Path:
        """Write strict JSON (null, never NaN) and return its path; folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
        return path

    @property
    def filename(self) -> str:
        """A name of its own in a folder of results, after CLIP_benchmark's pattern."""
        parts = (self.dataset, self.pretrained, self.model, self.task)
        return "_".join(re.sub(r"[^\w.-]+", "-", part) for part in parts if part) + ".json"


def write_results(results: Sequence[Result], out: Path) -> list[Path]:
    """Write one result to a ``.json`` file, or any number to a folder.

    Args:
        results: What to write.
        out: ``X.json`` or a folder.

    Returns:
        The files.

    Raises:
        ValueError: If several results would go to one file.
    """
    if out.suffix == ".json":
        if len(results) != 1:
            raise ValueError(f"{out}: {len(results)} results do not go into one file; name a folder")
        return [results[0].write(out)]
    names = [result.filename for result in results]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{out}: two results would both be {twice}; rename one of the data sets")
    return [result.write(out / name) for result, name in zip(results, names, strict=True)]


def table(results: Sequence[Result]) -> Table:
    """Results as a table, a figure a row, fractions as percent."""
    shown = Table("data", "model", "figure", "value", title=None)
    shown.columns[3].justify = "right"
    for result in results:
        model = f"{result.model}:{result.pretrained}" if result.pretrained else result.model
        for number, (name, value) in enumerate(result.metrics.items()):
            shown.add_row(*((result.dataset, model) if number == 0 else ("", "")), name, percent(name, value))
        shown.add_section()
    return shown


def percent(name: str, value: float | int | list[float] | None) -> str:
    """A figure for people: fractions in percent, counts as they are, a dash for none.

    >>> percent("acc1", 0.6334), percent("samples", 50000), percent("acc5", None), percent("acc1_ci", [0.1, 0.2])
    ('63.34 %', '50,000', '-', '10.00 to 20.00 %')
    """
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(f"{100 * part:.2f}" for part in value) + " %"
    return f"{value:,}" if name in _COUNTS else f"{100 * value:.2f} %"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
