"""From run folders to the page: read, load the encoder, run its tasks, and keep the page below its limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from clipkit.building import cache_folder
from clipkit.data.atomic import write_atomically
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.kinds import build_evaluator
from clipkit.loading import load_encoder
from clipkit.report.comparison import compare, config_differences
from clipkit.report.page import Side, render
from clipkit.report.record import Record, read_record
from clipkit.report.study import Study, study

MOST_BYTES = 10_000_000
SIDES = (112, 80, 56, 36)  # of thumbnails, in pixels; the first that keeps the page below the limit
MOST_TASKS = 12  # whose pictures are shown


def write_report(
    runs: list[str], out: Path, *, batch_size: int = 64, workers: int = 0, say: Callable[[str], None] = print
) -> Path:
    """Write the page about one run or two.

    Args:
        runs: One run folder, or two to compare.
        out: The HTML file.
        batch_size: Images of one forward.
        workers: Processes that read and decode images.
        say: Told what happens.

    Returns:
        The file.

    Raises:
        ValueError: If a folder is no run, or ``out`` cannot be written.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: name a file FILE.html in a folder that exists")
    records = [read_record(run) for run in runs]
    sides = [_side(record, batch_size=batch_size, workers=workers, say=say) for record in records]
    for line in (line for side in sides for line in side.missing):
        say(f"missing: {line}")
    differences = compare(sides[0].studies, sides[1].studies) if len(sides) == 2 else []
    config = config_differences(records[0].config, records[1].config) if len(sides) == 2 else []
    for side in SIDES:
        text = render(sides, differences, config, side=side, pictured=MOST_TASKS)
        page = text.encode("utf-8", "backslashreplace")
        if len(page) < MOST_BYTES:
            break
    else:
        raise ValueError(
            f"the page would have {len(page):,} bytes, more than {MOST_BYTES:,}; report fewer evaluate.tasks"
        )
    write_atomically(out, lambda file: file.write(page))
    return out


def _side(record: Record, *, batch_size: int, workers: int, say: Callable[[str], None]) -> Side:
    missing = list(record.missing)
    studies: list[Study] = []
    if record.checkpoint is not None and record.config.evaluate.tasks:
        encoder, notes = load_encoder(record.checkpoint)
        missing += notes
        encodings = Encodings(encoder, batch_size=batch_size, workers=workers)
        for name, spec in record.config.evaluate.tasks.items():
            say(f"{record.name}: task {name}")
            try:
                evaluator = build_evaluator(spec, _cache(record))
                studies.append(study(name, evaluator, encodings, place=str(spec.data)))
            except (ValueError, OSError) as error:
                missing.append(f"task {name}: {error}")
    return Side(record, tuple(studies), tuple(missing))


def _cache(record: Record) -> Path:
    """The run's own cache where it can be found from here; a relative one may have been meant from elsewhere."""
    chosen = record.config.data.cache
    if chosen is None or os.path.isdir(os.path.expanduser(chosen)):
        return cache_folder(record.config)
    return cache_folder()
