"""Results as files that ``clip_benchmark build`` reads too, and as a table of percents."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from clipkit.data.atomic import write_atomically
from clipkit.evaluation.evaluator import Figures
from clipkit.evaluation.out import CSV_HEAD, FILES, MARKDOWN_HEAD, check_count

_COUNTS = ("samples", "captions", "train_samples")  # numbers of things, not fractions
_PLAIN = r"rank|temperature|uniformity|alignment|modality_gap"  # numbers that are neither


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


def refuse_equal_names(results: Sequence[Result], out: Path) -> None:
    """Two results of one file name would overwrite one another.

    Raises:
        ValueError: With the name.
    """
    names = [result.filename for result in results]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{out}: two results would both be {twice}; rename one of the data sets")


def write_results(results: Sequence[Result], out: Path) -> list[Path]:
    """Write results.

    Args:
        results: What to write.
        out: ``X.json`` for one, ``X.csv`` or ``X.md`` for a table of them, or a folder of JSON files.

    Returns:
        The files.

    Raises:
        ValueError: If several results would go to one JSON file.
    """
    check_count(out, len(results))
    if out.suffix == ".json":
        return [results[0].write(out)]
    if out.suffix in FILES:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = _csv(results) if out.suffix == ".csv" else _markdown(results)
        write_atomically(out, lambda file: file.write(text.encode()))
        return [out]
    refuse_equal_names(results, out)
    return [result.write(out / result.filename) for result in results]


def rows(results: Sequence[Result]) -> Iterator[tuple[Result, str, Any, list[float] | None]]:
    """Each figure of each result with its interval, where it has one."""
    for result in results:
        for name, value in result.metrics.items():
            if not name.endswith("_ci"):
                interval = result.metrics.get(f"{name}_ci")
                yield result, name, value, interval if isinstance(interval, list) else None


def table(results: Sequence[Result]) -> Table:
    """Results as a table, a figure a row, fractions as percent."""
    shown = Table("data", "model", "figure", "value", "95 % interval", title=None)
    shown.columns[3].justify = shown.columns[4].justify = "right"
    for column in shown.columns:
        column.overflow = "fold"
    for column in shown.columns[2:4]:  # a figure's name that is cut is another's
        column.no_wrap = True
    last = None
    for result, name, value, interval in rows(results):
        if result is not last and last is not None:
            shown.add_section()
        head = ("", "") if result is last else (result.dataset, _model(result))
        shown.add_row(*head, name, percent(name, value), percent(name, interval) if interval else "")
        last = result
    return shown


def _csv(results: Sequence[Result]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for result, name, value, interval in rows(results):
        shown = "" if value is None else json.dumps(value)
        writer.writerow(
            [result.dataset, result.model, result.pretrained, result.task, name, shown, *(interval or ("", ""))]
        )
    return file.getvalue()


def _markdown(results: Sequence[Result]) -> str:
    lines = [*MARKDOWN_HEAD]
    for result, name, value, interval in rows(results):
        cells = (
            result.dataset,
            _model(result),
            name,
            percent(name, value),
            percent(name, interval) if interval else "",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _model(result: Result) -> str:
    return f"{result.model}:{result.pretrained}" if result.pretrained else result.model


def percent(name: str, value: float | int | list[float] | None) -> str:
    """A figure for people: fractions in percent, counts as they are, a dash for none.

    >>> percent("acc1", 0.6334), percent("samples", 50000), percent("acc5", None), percent("acc1_ci", [0.1, 0.2])
    ('63.34 %', '50,000', '-', '10.00 to 20.00 %')
    >>> percent("median_rank", 3.0), percent("image_retrieval_mean_rank", [1.8, 4.2])
    ('3.00', '1.80 to 4.20')
    """
    if value is None:
        return "-"
    plain = re.search(_PLAIN, name) is not None
    if isinstance(value, list):
        return " to ".join(f"{part:.2f}" if plain else f"{100 * part:.2f}" for part in value) + ("" if plain else " %")
    if name in _COUNTS or (isinstance(value, int) and value > 1):
        return f"{value:,}"
    return f"{value:.2f}" if plain else f"{100 * value:.2f} %"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
