"""The demo's last words: the figures beside chance and pixels, the proofs, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_QUESTIONS = {
    "style_transfer": "seen concept, new style",
    "unseen": "unseen concept, new style",
    "subgroup": "kind of unseen concept",
}


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """Print a summary to standard output."""
    console = Console(width=max(90, Console().width))  # a log file has no width of its own
    console.print(_table(summary))
    retrieval = summary["retrieval"]
    recalls = (
        f"{name.split('_')[0]} R@{k} {retrieval[f'{name}@{k}']:.1%}"
        for name in ("image_retrieval_recall", "text_retrieval_recall")
        for k in (1, 5)
    )
    print(f"retrieval over {retrieval['samples']:,} unseen pictures: {', '.join(recalls)}")
    print(f"{summary['samples_per_second']:.0f} samples/s in training, {summary['seconds']:.0f} s in all")
    print(
        f"look at {out / 'retrieval.png'}; figures in {out / 'summary.json'}; weights for open_clip in {out / 'export'}"
    )
    print("\nnext, on data of your own:")
    for command, what in next_commands(out):
        print(f"  {command}\n      {what}")


def next_commands(out: Path) -> list[tuple[str, str]]:
    """What to type after the demo, and what it does."""
    own = "clipkit fit demo run=runs/mine data.train.emoji=null 'data.train.mine.shards=shards/*.tar'"
    return [
        (
            f"clipkit evaluate {shlex.quote(str(out))} --data photos",
            "photos/CLASS/0.jpg, or images with .txt beside them",
        ),
        ("clipkit data pack pairs.csv --out shards", "filepath,caption to WebDataset shards"),
        (own, "the demo's model on them; or a configuration of your own, as the README shows"),
    ]


def _table(summary: dict[str, Any]) -> Table:
    shown = Table("question", "figure", "clipkit", "pixels 1-NN", "chance", "")
    for column in shown.columns:
        column.no_wrap = True
    for column in shown.columns[2:5]:
        column.justify = "right"
    for name, question in _QUESTIONS.items():
        row = summary[name]
        for figure in row["pixel_1nn"]:
            ours, pixels, chance = row[figure], row["pixel_1nn"][figure], row["chance"][figure]
            verdict = "" if ours > pixels else "pixels win"
            shown.add_row(question, figure, f"{ours:.1%}", f"{pixels:.1%}", f"{chance:.2%}", verdict)
            question = ""
        shown.add_section()
    return shown
