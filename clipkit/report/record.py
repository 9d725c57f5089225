"""What a run folder holds for a report: configuration, figures, how far it came, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.callbacks.metrics import RECORD
from clipkit.checkpoint import newest
from clipkit.config import RunConfig, load_config
from clipkit.config.json_text import parse_json
from clipkit.run_folder import CONFIG, STOPPED, finished_step

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Record:
    """A run as its files tell it.

    Args:
        folder: The run folder, as the user named it.
        config: Its configuration.
        rows: The lines of ``metrics.jsonl``.
        checkpoint: The newest checkpoint that verifies, or None.
        step: Step of that checkpoint.
        steps: Steps of the whole run; -1 where no checkpoint says so.
        status: How the run stands, in words.
        missing: What a report would want and the folder does not hold, in words.
    """

    folder: Path
    config: RunConfig
    rows: Sequence[dict[str, Any]]
    checkpoint: Path | None
    step: int
    steps: int
    status: str
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def series(self, figure: str) -> Points:
        """Samples seen and value, of every line that has the figure as a finite number."""
        found: list[tuple[Any, Any]] = [(row.get("samples", row.get("step")), row.get(figure)) for row in self.rows]
        return [(float(x), float(y)) for x, y in found if _is_number(x) and _is_number(y)]

    def figures(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix``, in the order of their first line."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name.startswith(prefix)))


def read_record(folder: str | Path) -> Record:
    """Read a run folder; nothing in it is changed.

    Args:
        folder: The run folder.

    Raises:
        ValueError: If it is no run folder, or its configuration cannot be read.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no run folder ({CONFIG} is missing); name a folder that clipkit fit made")
    config = load_config(folder / CONFIG)
    rows, missing = _read_rows(folder / RECORD)
    checkpoint, passed_over = newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else (None, [])
    missing += [f"the checkpoint {line} was passed over" for line in passed_over]
    if checkpoint is None:
        missing.append("no checkpoint verifies: no encoder, so nothing is evaluated, drawn from embeddings or tested")
    if not config.evaluate.tasks:
        missing.append("the configuration has no evaluate.tasks: no figures, pictures or map of embeddings")
    step, steps = finished_step(checkpoint)
    return Record(folder, config, rows, checkpoint, step, steps, _status(folder, rows, step, steps), tuple(missing))


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines that are whole; a run in training may be writing its last."""
    if not path.is_file():
        return [], [f"{path.name} is missing: no curves of the training"]
    rows, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    notes = [f"{bad} line(s) of {path.name} could not be read and are left out"] if bad else []
    return rows, notes if rows else [*notes, f"{path.name} holds no figures yet: no curves of the training"]


def _status(folder: Path, rows: Sequence[dict[str, Any]], step: int, steps: int) -> str:
    if 0 <= steps <= step:
        return "finished"
    if (folder / STOPPED).is_file():
        try:
            reason = parse_json((folder / STOPPED).read_text()).get("reason")
        except (ValueError, AttributeError):
            reason = None
        return f"stopped ({reason or 'no reason recorded'})"
    if not rows and steps < 0:
        return "started, nothing recorded yet"
    return "in training, or killed"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
