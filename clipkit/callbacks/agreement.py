"""Ranks agree on what to do: a signal to any of them stops all at one step, and every clock is rank 0's.

A handler only raises a flag. At the end of each step the flags start one all-reduce on a CPU group, which is read at the end of the next: no
step waits for it, and at most one step passes between a signal and its effect. An evaluation exchanges flags between its batches in the same
way and is given up as one; before the first step the ranks ask each other once. Lightning's own SIGTERM handler issues a collective from
inside the handler and waits for a broadcast at each step; both are replaced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECOND_INTERRUPT = 130
_FLAGS = ("stop", "checkpoint", "evaluate")
_STOP = _FLAGS.index("stop")


class StopAgreed(BaseException):
    """All ranks agreed to stop in the middle of something that may be given up."""


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
        self.stopped: str | None = None
        """The signal that the ranks agreed to stop for, the same on every rank."""
        self._signal = 0  # the first that came to this rank
        self._interrupts = 0
        self._at_once = False
        self._raised: set[str] = set()
        self._kept: set[str] = set()  # agreed on between two steps
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
        """Take signals as flags from now on; one that comes while the run is still being put together stops it before its first step."""
        if self._previous:
            return
        # outside the main thread (a notebook's executor) signals stay with who owns them
        with contextlib.suppress(ValueError):
            self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises ``StopAgreed``: for one process that has no step to finish yet."""
        self._at_once = True
        try:
            if self._signal:
                self._give_up()
            yield
        finally:
            self._at_once = False

    def release(self) -> None:
        """Give the signals back: after the last word is written, for until then a second SIGTERM must not end the process."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first step if a signal came until here, else start the clocks; the only time that ranks wait for each other."""
        now = time.monotonic()
        self._due = {flag: now + seconds for flag, seconds in self.clocks.items()}
        self._kept |= self._exchange() | self._read()
        if "stop" in self._kept:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read what was agreed at the last step, and start the next agreement."""
        self._ring()
        self.agreed = self._kept | self._exchange()
        self._kept = set()
        if "stop" in self.agreed:
            trainer.should_stop = True

    def poll(self) -> None:
        """Give up what is under way if a stop was agreed; all ranks call it equally often, a step or a batch apart.

        Raises:
            StopAgreed: On all ranks at the same call.
        """
        if self._group is None and distributed.world_size() > 1:  # no run: nobody set the ranks up
            return
        if self.stopped is None:
            self._kept |= self._exchange()
        if self.stopped is not None:
            raise StopAgreed

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finish the last agreement."""
        self._read()

    def _exchange(self) -> set[str]:
        """What was agreed at the last exchange; starts the next."""
        found = self._read()
        # a signal may come between any two lines: it raises into one of the two
        raised, self._raised = self._raised, set()
        flags = torch.tensor([int(flag in raised) for flag in _FLAGS], dtype=torch.int32)
        flags[_STOP] *= self._signal
        self._pending = (flags, distributed.all_reduce_max_async(flags, self._group))
        if self._group is None:  # one process agrees with itself at once
            found |= self._read()
        return found

    def _read(self) -> set[str]:
        if self._pending is None:
            return set()
        flags, handle = self._pending
        self._pending = None
        if handle is not None:
            handle.wait()
        found = {flag for flag, up in zip(_FLAGS, flags.tolist(), strict=True) if up}
        if "stop" in found and self.stopped is None:
            self.stopped = signal.Signals(int(flags[_STOP])).name
        return found

    def _ring(self) -> None:
        now = time.monotonic()
        for flag, seconds in self.clocks.items():
            if distributed.rank() == 0 and now >= self._due[flag]:
                self._raised.add(flag)
                self._due[flag] = now + seconds

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os._exit(SECOND_INTERRUPT)  # a second Ctrl-C means now
        self._signal = self._signal or number
        self._raised.add("stop")
        if self._at_once:
            self._give_up()

    def _give_up(self) -> None:
        self.stopped = signal.Signals(self._signal).name
        raise StopAgreed
