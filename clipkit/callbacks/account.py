"""The account of the data: the position moves on, what was bad is counted, and too much of it stops the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed
from clipkit.callbacks.say import say
from clipkit.data.account import EpochAccount, as_json
from clipkit.data.datamodule import ShardDataModule

ACCOUNT = "data.json"
FEWEST = 500  # samples that the budget is a share of at the least: one bad sample in a first small window stops nothing


class BadSampleBudget(RuntimeError):
    """More samples were bad than the configuration allows."""


class DataAccount(Callback):
    """Advance the data's position, count substitutes, and hold them against the budget.

    Args:
        folder: The run folder, which gets ``data.json`` at the end.
        data: The run's data module.
        budget: Share of the samples seen that may be bad.
        every: Steps between two looks at the budget over all ranks.
        batch_size: Pairs of one step over all ranks.
    """

    def __init__(self, *, folder: Path, data: ShardDataModule, budget: float, every: int, batch_size: int) -> None:
        self.folder = folder
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
        """Advance, say the first bad samples of each cause, and check the budget at window steps and at the end."""
        self.data.advance(batch)
        for record in batch["bad"]:
            self._bad += 1
            self.said[record.cause] += 1
            if self.said[record.cause] <= 3:
                say(
                    f"warning: bad sample {record.key!r} in {record.shard} ({record.cause}); a substitute trains in its place"
                )
        if trainer.global_step % self.every == 0 or trainer.global_step == self.data.batches:
            self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the account of every source and epoch, and say it in a line a source."""
        accounts = self.data.report()
        if trainer.is_global_zero:
            if self.data.earlier:
                say(f"data: {describe_earlier(self.data.earlier)}")
            try:
                (self.folder / ACCOUNT).write_text(json.dumps(as_json(accounts), indent=1) + "\n")
            except OSError as error:
                say(f"warning: {ACCOUNT} could not be written ({error})")
            for name, epochs in accounts.items():
                say(f"data: {name}: {describe(epochs)}")

    def _check(self, trainer: Trainer) -> None:
        total = int(
            distributed.all_reduce_(torch.tensor([self._bad], dtype=torch.int64, device=trainer.strategy.root_device))
        )
        seen = (trainer.global_step - self._first_step) * self.batch_size
        if total > self.budget * max(seen, FEWEST):
            raise BadSampleBudget(
                f"{total} of {seen} samples were bad ({total / seen:.1%}), more than data.bad_samples = {self.budget:.1%} allows; "
                f"on this rank by cause: {dict(self.said)}. Look at the data with the keys above, mend it, or raise data.bad_samples"
            )


def describe_earlier(plans: Sequence[Mapping[str, Any]]) -> str:
    """What was trained on plans that were left with ``--allow-mismatch``.

    Example:
        >>> describe_earlier([{"steps": 4, "samples": 64, "bad": {"a": {"0": {"no_caption": 2}}}}])
        'the first 4 steps (64 samples, 2 of them bad) were of another plan and stand in no account below'
    """
    steps, samples = sum(plan["steps"] for plan in plans), sum(plan["samples"] for plan in plans)
    causes = [
        count
        for plan in plans
        for epochs in plan["bad"].values()
        for found in epochs.values()
        for count in found.values()
    ]
    others = "another plan" if len(plans) == 1 else f"{len(plans)} other plans"
    return f"the first {steps} steps ({samples} samples, {sum(causes)} of them bad) were of {others} and stand in no account below"


def describe(epochs: Sequence[EpochAccount]) -> str:
    """The account of one source in a line.

    Example:
        >>> one = EpochAccount(epoch=0, present=70, filtered=0, remainder=6, planned=64, seen=64, trained=63, bad={"truncated": 1})
        >>> two = EpochAccount(epoch=1, present=70, filtered=0, remainder=6, planned=64, seen=10, trained=10, noted={"animated": 3})
        >>> describe([one, two])
        'an epoch is 70 present = 0 filtered + 6 remainder + 64 planned; over 1.2 epochs 73 trained + 1 bad (1 truncated); noted: animated 3'
    """
    if not epochs:
        return "nothing was seen"
    last = epochs[-1]
    bad: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    for epoch in epochs:
        bad.update(epoch.bad)
        noted.update(epoch.noted)
    causes = f" ({', '.join(f'{count} {cause}' for cause, count in bad.most_common())})" if bad else ""
    also = f"; noted: {', '.join(f'{cause} {count}' for cause, count in noted.most_common())}" if noted else ""
    if last.epoch < 0:
        return f"streamed {last.trained} trained + {sum(bad.values())} bad{causes}{also}"
    done = len(epochs) - 1 + last.seen / last.planned
    copies = f" + {last.repeated} repeated" if last.repeated else ""
    by = f" ({', '.join(f'{count} {cause}' for cause, count in last.filtered_by.items())})" if last.filtered else ""
    return (
        f"an epoch is {last.present} present{copies} = {last.filtered} filtered{by} + {last.remainder} remainder + {last.planned} planned; "
        f"over {done:.1f} epochs {sum(epoch.trained for epoch in epochs)} trained + {sum(bad.values())} bad{causes}{also}"
    )
