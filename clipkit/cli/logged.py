"""What clipkit logs, as every verb says it: ``warning: ...`` on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator


class _Speaker(logging.Handler):
    """Standard error as it is at the moment: a bar on a terminal puts its own in place, to keep lines above it."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a file on a full disk stops nothing
            print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Say what clipkit logs in this one form, whatever handlers another package may give to the root logger."""
    log, speaker = logging.getLogger("clipkit"), _Speaker(logging.WARNING)
    before = log.propagate
    log.addHandler(speaker)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(speaker)
        log.propagate = before
