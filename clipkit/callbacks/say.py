"""Lines for people: rank 0 speaks for all, on standard error, so that standard output stays for results."""

from __future__ import annotations

import contextlib
import sys

from clipkit import distributed


def say(line: str) -> None:
    """Print a line, once for all ranks; standard error may be a file on a full disk, which stops nothing."""
    if distributed.rank() == 0 and distributed.launcher_rank() == 0:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
