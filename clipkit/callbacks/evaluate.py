"""Evaluation inside a run: every task on all ranks, every so many samples and at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed
from clipkit.callbacks.agreement import Agreement, StopAgreed
from clipkit.callbacks.checkpoints import crossed
from clipkit.callbacks.metrics import MetricsLog
from clipkit.callbacks.say import say

Figures = dict[str, Any]
OWED = "owed_evaluation"


class Evaluate(Callback):
    """Run tasks and log their figures as ``val/TASK/FIGURE``.

    A signal ends an evaluation early on all ranks. The checkpoint that follows says that it is owed, and the run that goes on from there begins
    with it.

    Args:
        tasks: Computes all figures, ``val/TASK/FIGURE``, on all ranks together; None where there is nothing to evaluate.
        at_start: Whether to evaluate before the first step too.
        every: Samples between evaluations, or None for clock and end alone.
        batch_size: Pairs of one step over all ranks.
        steps: Steps of the whole run.
        agreement: Tells what the ranks agreed on.
        metrics: Writes the figures.
        figures: Filled with the last evaluation's figures.
        now: Filled with the figures of this very step, for whoever chooses the best checkpoint.
    """

    def __init__(
        self,
        *,
        tasks: Callable[[], Figures] | None,
        at_start: bool,
        every: int | None,
        batch_size: int,
        steps: int,
        agreement: Agreement,
        metrics: MetricsLog,
        figures: Figures,
        now: Figures,
    ) -> None:
        self.tasks = tasks
        self.at_start = at_start
        self.every = every
        self.batch_size = batch_size
        self.steps = steps
        self.agreement = agreement
        self.metrics = metrics
        self.figures = figures
        self.now = now
        self.owed = False
        """Whether the evaluation of the last step was given up."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave word of an evaluation that was given up."""
        if self.owed:
            checkpoint[OWED] = True

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up what is owed."""
        self.owed = bool(checkpoint.get(OWED, False))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate what training starts from, or what is owed; a run that goes on has the other figures already."""
        at_start = self.at_start and trainer.global_step == 0
        if self.tasks is None or trainer.should_stop or not (at_start or self.owed):
            return
        owed = self.owed
        self._evaluate(trainer)
        if owed and not self.owed:
            self.now.update(self.figures)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate if this step is one to evaluate at."""
        step = trainer.global_step
        self.now.clear()
        by_clock = self.agreement.take("evaluate")
        due = step >= self.steps or (self.every is not None and crossed(step, self.batch_size, self.every))
        if self.tasks is None or not (by_clock or due):
            return
        self._evaluate(trainer)
        self.now.update(self.figures)  # none where it was given up

    def _evaluate(self, trainer: Trainer) -> None:
        step = trainer.global_step
        self.figures.clear()
        assert self.tasks is not None
        try:
            with distributed.gathered(trainer.lightning_module):  # a rank may have more to encode than another
                self.figures.update(self.tasks())
        except StopAgreed:
            self.owed = step > 0
            trainer.should_stop = True
            say(f"the evaluation at step {step} was given up for the signal; the run that goes on makes it up")
            return
        self.owed = False
        self.metrics.write(trainer, step, self.figures)
        say(f"evaluated at step {step} on {distributed.world_size()} rank(s)")
