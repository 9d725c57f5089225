"""``clipkit evaluate``: a model on data sets, as a table and as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from clipkit import api
from clipkit.evaluation.result import Result, table, write_results

_TASKS = {"zero_shot": "zeroshot_classification", "retrieval": "zeroshot_retrieval"}  # CLIP_benchmark's names


def evaluate_all(
    model: str, data: Sequence[str], *, task: str | None, out: Path | None, batch_size: int, workers: int
) -> None:
    """Score a model on each data set, print percent and write fractions.

    Raises:
        ValueError: If the task is unknown, or several results would go to one file.
    """
    if task is not None and task not in _TASKS:
        raise ValueError(f"--task {task}: there is no such task; tasks: {', '.join(_TASKS)}")
    if out is not None and out.suffix == ".json" and len(data) > 1:
        raise ValueError(f"--out {out}: {len(data)} results do not go into one file; name a folder")
    if out is not None and (out.is_dir() if out.suffix == ".json" else out.exists() and not out.is_dir()):
        kind = "a folder" if out.is_dir() else "a file"
        raise ValueError(f"--out {out}: it is {kind}; name a file FILE.json for one result, or a folder")
    encoder = api.load(model)
    results = []
    for place in data:
        figures = api.evaluate(encoder, data=place, task=cast(Any, task), batch_size=batch_size, workers=workers)
        kind = "retrieval" if "image_retrieval_recall@5" in figures else "zero_shot"
        name = place.removeprefix("embedded:") if place.startswith("embedded:") else Path(place).resolve().stem
        results.append(Result(name, encoder.info.model, encoder.info.pretrained or "", _TASKS[kind], figures))
    Console().print(table(results))
    if out is not None:
        for path in write_results(results, out):
            print(f"written to {path}")
