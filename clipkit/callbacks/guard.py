"""Says what the guard skipped, and stops a run in which nothing is left to train on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit.callbacks.say import say
from clipkit.module import CLIPModule

MOST_STEPS = 100  # between two looks: until then the keys of every step are kept
HOPELESS = 10


class NotFinite(RuntimeError):
    """Every step of a stretch was skipped."""


class ReportSkipped(Callback):
    """Read the guard's flags now and then.

    Args:
        every: Steps of a logging window.
        steps: Steps of the whole run.
    """

    def __init__(self, *, every: int, steps: int) -> None:
        self.every = min(every, MOST_STEPS)
        self.steps = steps
        self.skipped = 0
        self._seen = 0

    def state_dict(self) -> dict[str, Any]:
        """How many steps of the run were skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = int(state_dict["skipped"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the end of each window, and at the end of the run."""
        step = trainer.global_step
        self._seen += 1
        if step % self.every and step != self.steps and not trainer.should_stop:
            return
        seen, self._seen = self._seen, 0
        assert isinstance(pl_module, CLIPModule)
        found = pl_module.guard.take(step)
        if found is None:
            return
        self.skipped += found.steps
        say(f"warning: {found}; {self.skipped} of {step} steps so far trained nothing")
        if found.steps == seen >= HOPELESS:
            raise NotFinite(
                f"no step of the last {seen} had a finite gradient; nothing of them reached the weights. "
                "Lower optim.lr, set optim.clip_norm, or go on from an earlier checkpoint (--resume RUN/checkpoints/STEP)"
            )
