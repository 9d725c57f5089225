"""The account of the data: the position moves on, what was bad is counted, and too much of it stops the run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed
from clipkit.callbacks.say import say
from clipkit.data.datamodule import ShardDataModule


class BadSampleBudget(RuntimeError):
    """More samples were bad than the configuration allows."""


class DataAccount(Callback):
    """Advance the data's position, count substitutes, and hold them against the budget.

    Args:
        data: The run's data module.
        budget: Share of the samples seen that may be bad.
        every: Steps between two looks at the budget over all ranks.
        batch_size: Pairs of one step over all ranks.
    """

    def __init__(self, *, data: ShardDataModule, budget: float, every: int, batch_size: int) -> None:
        self.data = data
        self.budget = budget
        self.every = every
        self.batch_size = batch_size
        self.said: Counter[str] = Counter()
        self._bad = 0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here: the budget is a share of what this process saw."""
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance, say the first bad samples of each cause, and check the budget at window steps."""
        self.data.advance(batch)
        for record in batch["bad"]:
            self._bad += 1
            self.said[record.cause] += 1
            if self.said[record.cause] <= 3:
                say(
                    f"warning: bad sample {record.key!r} in {record.shard} ({record.cause}); a substitute trains in its place"
                )
        if trainer.global_step % self.every == 0:
            self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many substitutes trained, by cause."""
        if self.said:
            causes = ", ".join(f"{count} {cause}" for cause, count in self.said.most_common())
            say(f"{self._bad} bad samples were substituted on rank 0 since this process started: {causes}")

    def _check(self, trainer: Trainer) -> None:
        total = int(
            distributed.all_reduce_(torch.tensor([self._bad], dtype=torch.int64, device=trainer.strategy.root_device))
        )
        seen = (trainer.global_step - self._first_step) * self.batch_size
        if total > self.budget * seen:
            raise BadSampleBudget(
                f"{total} of {seen} samples were bad ({total / seen:.1%}), more than data.bad_samples = {self.budget:.1%} allows; "
                f"on this rank by cause: {dict(self.said)}. Look at the data with the keys above, mend it, or raise data.bad_samples"
            )
