"""Lines for people: rank 0 speaks for all, on standard error, so that standard output stays for results."""

from __future__ import annotations

import sys

from clipkit import distributed


def say(line: str) -> None:
    """Print a line, once for all ranks."""
    if distributed.rank() == 0 and distributed.launcher_rank() == 0:
        print(line, file=sys.stderr, flush=True)
