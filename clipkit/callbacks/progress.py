"""What a person sees while training: a bar on a terminal, one line a window elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from clipkit.callbacks.say import say


class Progress:
    """Shows steps and figures on rank 0.

    Args:
        steps: Steps of the whole run.
        terminal: Whether to draw a bar; None asks standard error.
    """

    def __init__(self, steps: int, *, terminal: bool | None = None) -> None:
        self.steps = steps
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar: Any = None
        self._task: Any = None
        self._first = 0
        self._started = 0.0

    def start(self, step: int) -> None:
        """Begin at a step: 0, or where a resumed run goes on."""
        self._first, self._started = step, time.monotonic()
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps, completed=step)

    def step(self, step: int) -> None:
        """A step without figures."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, record: Mapping[str, Any]) -> None:
        """A step with figures."""
        line = describe(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=line)
        else:
            say(f"step {step}/{self.steps} | {line}{self._remaining(step)}")

    def stop(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _remaining(self, step: int) -> str:
        done = step - self._first
        if done <= 0 or step >= self.steps:
            return ""
        seconds = int((time.monotonic() - self._started) / done * (self.steps - step))
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        return f" | eta {hours}h{minutes:02d}m" if hours else f" | eta {minutes}m{seconds % 60:02d}s"


_SHORT = {
    "train/loss": ("loss", "{:.4f}"),
    "train/logit_scale": ("scale", "{:.1f}"),
    "train/logit_scale_clamps": ("clamped", "{:.0f}"),
    "train/lr": ("lr", "{:.2e}"),
    "train/grad_norm": ("grad", "{:.2f}"),
    "train/samples_per_second": ("samples/s", "{:.0f}"),
    "train/data_wait": ("data", "{:.0%}"),
}


def describe(record: Mapping[str, Any]) -> str:
    """A record in one line.

    Example:
        >>> describe({"step": 50, "samples": 3200, "train/loss": 1.25, "train/data_wait": 0.031, "val/pets/acc1": 0.5})
        'loss 1.2500 | data 3% | val/pets/acc1 0.5000'
    """
    parts = []
    for name, value in record.items():
        known = name in ("step", "samples") or name.startswith("train/loss/") or name.endswith(("_length", "_tokens"))
        known = known or (name.startswith("train/logit_scale_clamps") and not value)
        if known or not isinstance(value, int | float):
            continue
        label, form = _SHORT.get(name, (name, "{:.4f}"))
        parts.append(f"{label} {form.format(value)}")
    return " | ".join(parts)
