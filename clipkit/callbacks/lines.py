"""A file of lines that a full disk delays and never tears."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from clipkit.callbacks.say import say


class Lines:
    """Adds lines to a file, at once where the disk takes them, else with a later one, in order.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []

    def add(self, line: str) -> None:
        """Write a line after those that wait."""
        refused_before = bool(self.waiting)
        self.waiting.append(line)
        if not self.write() and not refused_before:
            say(f"warning: {self.path} cannot be written; its lines wait in memory, training goes on")

    def write(self) -> bool:
        """Write what waits; whether nothing waits any more."""
        if not self.waiting:
            return True
        size = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("a") as file:
                file.write("".join(f"{line}\n" for line in self.waiting))
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            return False
        self.waiting = []
        return True
