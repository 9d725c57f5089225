"""What a finished run says: the figures before and after, the best checkpoint, and what to type next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkit.callbacks.metrics import RECORD
from clipkit.checkpoint import steps
from clipkit.config.evaluate import smaller_is_better

Record = Mapping[str, Any]
_SHORT = {f"{way}_retrieval_recall@{k}": f"{way} R@{k}" for k in (1, 5) for way in ("image", "text")} | {
    "acc1": "acc1",
    "acc5": "acc5",
    "mean_per_class_recall": "mean per-class recall",
    "loss": "loss",
}


def read_record(folder: Path) -> list[Record]:
    """The lines of a run's record that hold figures of an evaluation."""
    lines = [json.loads(line) for line in (folder / RECORD).read_text().splitlines()]
    return [line for line in lines if any(name.startswith("val/") for name in line)]


def before_and_after(record: Sequence[Record]) -> list[str]:
    """A line a task: what was measured before the first step and after the last one.

    Example:
        >>> start = {"step": 0, "val/pairs/image_retrieval_recall@1": 0.25, "val/pairs/samples": 20}
        >>> end = {"step": 9, "val/pairs/image_retrieval_recall@1": 0.5, "val/pairs/samples": 20}
        >>> before_and_after([start, end])
        ['pairs: image R@1 25.0 % -> 50.0 % (20 images)']
    """
    if not record or record[0]["step"] != 0 or len(record) == 1:
        return []
    before, after = record[0], record[-1]
    tasks: dict[str, list[str]] = {}
    for name in sorted(before, key=_place):
        task, _, figure = name.removeprefix("val/").rpartition("/")
        if figure in _SHORT and name.startswith("val/") and before[name] is not None and after.get(name) is not None:
            share = "{:.4f} -> {:.4f}" if figure == "loss" else "{:.1%} -> {:.1%}"
            shown = share.format(before[name], after[name]).replace("%", " %")
            tasks.setdefault(task, []).append(f"{_SHORT[figure]} {shown}")
    lines = []
    for task, parts in tasks.items():
        count = before.get(f"val/{task}/samples")
        lines.append(f"{task + ': ' if task else ''}{', '.join(parts)}{f' ({count:,} images)' if count else ''}")
    return lines


def _place(name: str) -> int:
    figures = list(_SHORT)
    figure = name.rpartition("/")[2]
    return figures.index(figure) if figure in figures else len(figures)


def best_checkpoint(folder: Path, record: Sequence[Record], figure: str) -> tuple[Path | None, str]:
    """The kept checkpoint with the best figure, and a line that says so; some are best where they are least."""
    sign = -1 if smaller_is_better(figure) else 1
    kept = {int(path.name): path for path in steps(folder / "checkpoints")}
    scores = {line["step"]: sign * line[figure] for line in record if line.get(figure) is not None}
    found = [step for step in scores if step in kept]
    if not found:
        return None, ""
    best = max(found, key=lambda step: (scores[step], step))
    line = f"best checkpoint: {kept[best]} ({figure} {abs(scores[best]):.4f} at step {best})"
    if 0 in scores and scores[0] >= scores[best]:
        line += f"; the start was no worse ({abs(scores[0]):.4f}), so this training has not helped"
    return kept[best], line


def next_commands(checkpoint: Path) -> list[str]:
    """What to do with it."""
    model = shlex.quote(str(checkpoint))
    return [
        f"clipkit evaluate {model} --data YOUR_PHOTOS",
        f"clipkit export {model} --format open_clip --out exported",
    ]


def closing_lines(folder: Path, best_figure: str | None) -> list[str]:
    """All of it, for a run that measured before its first step."""
    record = read_record(folder)
    lines = before_and_after(record)
    if not lines:
        return []
    best, line = best_checkpoint(folder, record, best_figure) if best_figure else (None, "")
    lines += [line] if line else []
    newest = steps(folder / "checkpoints")
    chosen = best or (newest[0] if newest else None)
    return lines + ([f"next: {command}" for command in next_commands(chosen)] if chosen else [])
