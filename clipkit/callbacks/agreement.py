"""Ranks agree on what to do: a signal to any of them stops all at one step, and every clock is rank 0's.

A handler only raises a flag. At the end of each step the flags start one all-reduce on a CPU group, which is read at the end of the next: no
step waits for it, and at most one step passes between a signal and its effect. Lightning's own SIGTERM handler issues a collective from
inside the handler and waits for a broadcast at each step; both are replaced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECOND_INTERRUPT = 130
_FLAGS = ("stop", "checkpoint", "evaluate")


class Agreement(Callback):
    """Flags that all ranks see at the same step.

    Args:
        clocks: Seconds between two risings of a flag (``checkpoint``, ``evaluate``) by rank 0's clock.
    """

    def __init__(self, clocks: dict[str, float] | None = None) -> None:
        unknown = set(clocks or {}) - set(_FLAGS)
        assert not unknown, unknown
        self.clocks = dict(clocks or {})
        self.agreed: set[str] = set()
        self.signal_name: str | None = None
        self._raised: set[str] = set()
        self._due = dict.fromkeys(self.clocks, 0.0)
        self._group: Any = None
        self._pending: tuple[torch.Tensor, Any] | None = None
        self._previous: dict[int, Any] = {}

    def take(self, flag: str) -> bool:
        """Whether all ranks agreed on ``flag`` at this step; asking again answers no."""
        found = flag in self.agreed
        self.agreed.discard(flag)
        return found

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's handlers by a flag."""
        # Both are private: an upgrade of Lightning that moves them must fail here and not in the night.
        assert hasattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor")
        assert hasattr(trainer._signal_connector, "register_signal_handlers")
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._group = distributed.cpu_group()
        self.listen()

    def listen(self) -> None:
        """Take signals as flags from now on; one that comes while the run is still being put together stops it at its first step."""
        if self._previous:
            return
        # outside the main thread (a notebook's executor) signals stay with who owns them
        with contextlib.suppress(ValueError):
            self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        now = time.monotonic()
        self._due = {flag: now + seconds for flag, seconds in self.clocks.items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read what was agreed at the last step, and start the next agreement."""
        self.agreed = self._read()
        self._ring()
        raised, self._raised = (
            self._raised,
            set(),
        )  # a signal may come between any two lines: it raises into one of the two
        flags = torch.tensor([int(flag in raised) for flag in _FLAGS], dtype=torch.int32)
        self._pending = (flags, distributed.all_reduce_max_async(flags, self._group))
        if self._group is None:  # one process agrees with itself at once
            self.agreed |= self._read()
        if "stop" in self.agreed:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finish the last agreement and give the signals back."""
        self._read()
        self.release()

    def _read(self) -> set[str]:
        if self._pending is None:
            return set()
        flags, handle = self._pending
        self._pending = None
        if handle is not None:
            handle.wait()
        return {flag for flag, up in zip(_FLAGS, flags.tolist(), strict=True) if up}

    def _ring(self) -> None:
        now = time.monotonic()
        for flag, seconds in self.clocks.items():
            if distributed.rank() == 0 and now >= self._due[flag]:
                self._raised.add(flag)
                self._due[flag] = now + seconds

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name is not None:
            os._exit(SECOND_INTERRUPT)  # a second Ctrl-C means now
        self.signal_name = signal.Signals(number).name
        self._raised.add("stop")
