"""What a person sees while sets are scored: a bar with an estimate on a terminal, a line a set elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from clipkit import distributed
from clipkit.callbacks.say import say


class Watch:
    """Counts images on rank 0.

    Args:
        total: Images of all sets.
        terminal: Whether to draw a bar; None asks standard error.
    """

    def __init__(self, total: int, *, terminal: bool | None = None) -> None:
        self.total = total
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar: Any = None
        self._task: Any = None
        self._done = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self.terminal and distributed.rank() == 0:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("images"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_images(self, count: int) -> None:
        """This rank encoded so many; the others go as fast."""
        self._done += count * distributed.world_size()
        if self._bar is not None:
            self._bar.update(self._task, completed=min(self._done, self.total))

    def say(self, line: str) -> None:
        """A line on a set, with what is left to do."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            say(line + self._remaining())

    def _remaining(self) -> str:
        if not 0 < self._done < self.total:
            return ""
        seconds = int((time.monotonic() - self._started) / self._done * (self.total - self._done))
        return f", about {seconds // 60}m{seconds % 60:02d}s left"
