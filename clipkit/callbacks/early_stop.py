"""Stop a run whose figure no longer gets better: rank 0 decides, all ranks stop at the same step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed
from clipkit.callbacks.say import say
from clipkit.config.evaluate import smaller_is_better


class EarlyStop(Callback):
    """Stands between evaluation and checkpoints, so that the last step is saved.

    Args:
        monitor: The figure, such as ``val/imagenet/acc1``.
        patience: Evaluations in a row without a better figure that end the run.
        min_delta: By how much a figure must be better to count.
        figures: Figures that were measured at this very step, filled by another callback.
    """

    def __init__(self, *, monitor: str, patience: int, min_delta: float, figures: Mapping[str, Any]) -> None:
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.figures = figures
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0
        self.reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best figure and how long ago it was."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on waiting."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.waited = state_dict["waited"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at a figure that the run before this one was stopped from measuring."""
        self._look(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the figure, if it was measured at this step."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        if self.monitor not in self.figures:
            return
        value = self.figures[self.monitor]
        if self._better(value):
            self.best, self.best_step, self.waited = float(value), trainer.global_step, 0
        else:
            self.waited += 1
        if distributed.broadcast_int(int(self.waited >= self.patience)):
            best = "none that is a number" if self.best is None else f"{self.best:.4f} at step {self.best_step}"
            self.reason = (
                f"early stop: {self.monitor} did not get better in {self.waited} evaluations, the best was {best}"
            )
            say(self.reason)
            trainer.should_stop = True

    def _better(self, value: Any) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.best is None:
            return True
        gain = self.best - value if smaller_is_better(self.monitor) else value - self.best
        return gain > self.min_delta
