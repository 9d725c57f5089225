"""What it costs to start the command line: ``clipkit --help`` in units of an empty Python process."""

from __future__ import annotations

import subprocess
import sys
import time

from common import ROOT, figure, finish, quick

HELP = [sys.executable, "-m", "clipkit", "--help"]
EMPTY = [sys.executable, "-c", "pass"]


def seconds(command: list[str]) -> float:
    """Time of one process from its start to its end."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - started


def main() -> int:
    """Run both in turn and compare medians."""
    repetitions = 7 if quick(__doc__ or "") else 25
    seconds(HELP)  # byte code is written once, by whoever comes first
    pairs = [(seconds(EMPTY), seconds(HELP)) for _ in range(repetitions)]
    empty, shown = (figure([pair[i] * 1000 for pair in pairs]) for i in (0, 1))
    ratio = figure([ours / theirs for theirs, ours in pairs], value=shown["value"] / empty["value"])
    return finish("startup", peer="python -c pass", figures={"help_ratio": ratio, "help_ms": shown, "python_ms": empty})


if __name__ == "__main__":
    sys.exit(main())
