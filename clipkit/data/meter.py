"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Meter:
    """Counts items of work; a context manager.

    Args:
        what: What is done, such as ``indexing 12 shards``.
        total: Items.
        terminal: Whether to draw a bar; None asks standard error.
        every: Seconds between two lines where there is no bar.
    """

    def __init__(self, what: str, total: int, *, terminal: bool | None = None, every: float = 10.0) -> None:
        self.what, self.total, self.every = what, total, every
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> Meter:
        self._started = self._said = time.monotonic()
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn(self.what), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        else:
            print(self.what, file=sys.stderr, flush=True)
        return self

    def advance(self) -> None:
        """One more item is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
            return
        now = time.monotonic()
        if now - self._said >= self.every and self._done < self.total:
            self._said = now
            left = remaining((now - self._started) / self._done * (self.total - self._done))
            print(f"{self.what}: {self._done:,} done, {left} left", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def remaining(seconds: float) -> str:
    """A time for people.

    Example:
        >>> remaining(7.2), remaining(200), remaining(7300)
        ('0m07s', '3m20s', '2h01m')
    """
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{whole % 60:02d}s"
