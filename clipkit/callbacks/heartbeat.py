"""Tells the watchdog what a rank is at, and gives the collectives the time that this may take."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed
from clipkit.callbacks.watchdog import Watchdog

_MARGIN = 30.0
"""Seconds that a collective gets beyond the watchdog, which can say more than that it took too long."""


class Heartbeat(Callback):
    """Stands first among the callbacks; its ``last`` stands last.

    Args:
        watchdog: Whom to tell; None for one rank, which nobody waits for.
    """

    def __init__(self, watchdog: Watchdog | None) -> None:
        self.watchdog = watchdog
        self.last = _Last(self)
        self._timeout = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An evaluation may come before the first step."""
        self.enter("pause", trainer.global_step + 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is there."""
        self.enter("start" if self.last.first else "step", trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Figures, evaluations and checkpoints follow."""
        self.last.first = False
        self.enter("pause", trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The account and the last words follow."""
        self.enter("pause", trainer.global_step)

    def enter(self, phase: str, step: int) -> None:
        """Pass on a phase of ``watchdog.PHASES`` and its step, from 1."""
        if self.watchdog is None:
            return
        self.watchdog.enter(phase, step)
        timeout = self.watchdog.limits.of(phase) + _MARGIN
        if timeout != self._timeout:
            self._timeout = timeout
            distributed.set_timeout(timeout)


class _Last(Callback):
    """What follows is waiting for data."""

    def __init__(self, of: Heartbeat) -> None:
        self.of, self.first = of, True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step may compile."""
        self.of.enter("start", trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is waited for."""
        self.of.enter("data", trainer.global_step + 1)
