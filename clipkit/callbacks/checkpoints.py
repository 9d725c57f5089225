"""When checkpoints are written and which are kept."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed
from clipkit.callbacks.agreement import Agreement
from clipkit.callbacks.checkpoint_io import FolderCheckpointIO
from clipkit.callbacks.say import say
from clipkit.checkpoint import remove_checkpoint, remove_unfinished, set_aside, steps
from clipkit.checkpoint_copies import Copies, reason
from clipkit.config.evaluate import smaller_is_better


class SaveCheckpoints(Callback):
    """Save every so many samples, when a clock or a signal says so, and at the end; keep the newest, the best and the milestones.

    Where the best are kept, a step at which the deciding figure was measured is saved too: a figure belongs to the weights that it was
    measured on. Nothing is saved on an exception: the weights may be what it is about.

    Args:
        folder: ``RUN/checkpoints``.
        io: Writes them.
        copies: Where they are copied to, or None.
        every: Samples between checkpoints, or None for clock, signal and end alone.
        milestone: Samples between checkpoints that stay for good, or None.
        batch_size: Pairs of one step over all ranks.
        steps: Steps of the whole run.
        keep_last: How many of the newest stay.
        keep_best: How many of the best by ``best`` stay beside them.
        best: The figure that decides (``val/imagenet/acc1``); which way is better says ``smaller_is_better``.
        agreement: Tells what the ranks agreed on.
        figures: Figures that were measured at this very step, filled by another callback.
    """

    def __init__(
        self,
        *,
        folder: Path,
        io: FolderCheckpointIO,
        copies: Copies | None = None,
        every: int | None,
        milestone: int | None,
        batch_size: int,
        steps: int,
        keep_last: int,
        keep_best: int,
        best: str | None,
        agreement: Agreement,
        figures: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.io = io
        self.copies = copies
        self.copy_failures = 0
        self.every = every
        self.milestone = milestone
        self.batch_size = batch_size
        self.steps = steps
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.best = best
        self.agreement = agreement
        self.figures = figures
        self.scores: dict[str, float] = {}
        self.milestones: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        """The figure of each checkpoint that has one, negated where smaller is better, and the steps that stay for good."""
        return {"scores": self.scores, "milestones": self.milestones}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the figures and milestones of an earlier part of the run."""
        self.scores = dict(state_dict["scores"])
        self.milestones = list(state_dict.get("milestones", ()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear what a killed writer left, and put away what the run does not go on from: it is not this run's past.

        A figure that the run before this one was stopped from measuring is noted; where no step follows, the checkpoint is written anew, for it
        says that the evaluation is owed.
        """
        if trainer.is_global_zero:
            remove_unfinished(self.folder)
            for path in steps(self.folder):
                if int(path.name) > trainer.global_step:
                    say(f"{path} is newer than the step that this run goes on from: it is kept as {set_aside(path)}")
        self._score(trainer.global_step)
        if trainer.global_step >= self.steps:
            self._save(trainer, trainer.global_step, last=True, milestone=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if this step is one to save at."""
        step = trainer.global_step
        by_clock = self.agreement.take("checkpoint")
        last = step >= self.steps or trainer.should_stop
        measured = self.best is not None and self.figures.get(self.best) is not None
        milestone = self._reaches(self.milestone, step)
        if by_clock or last or measured or milestone or self._reaches(self.every, step):
            self._save(trainer, step, last=last, milestone=milestone)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is under way when the run is left."""
        self.io.wait()
        if self.copies is not None and self.copy_failures:
            say(
                f"warning: {self.copy_failures} copies of checkpoints failed; what {self.copies.url} holds may be older"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a checkpoint that is under way be finished; it was taken before."""
        with contextlib.suppress(Exception):  # the exception that is told is the first
            self.io.wait()

    def _reaches(self, every: int | None, step: int) -> bool:
        return every is not None and crossed(step, self.batch_size, every)

    def _save(self, trainer: Trainer, step: int, *, last: bool, milestone: bool) -> None:
        self._score(step)
        if milestone:
            self.milestones.append(step)
        chosen = functools.partial(
            kept,
            scores=dict(self.scores),
            milestones=frozenset(self.milestones),
            last=self.keep_last,
            best=self.keep_best,
        )
        then = functools.partial(self._committed, self.folder / str(step), chosen)
        trainer.save_checkpoint(self.folder / str(step), storage_options=then)
        if last:
            self.io.wait()
        distributed.barrier()

    def _score(self, step: int) -> None:
        score = self.figures.get(self.best) if self.best is not None else None
        if score is not None and math.isfinite(score):  # the loss of a run that diverged is nobody's best
            self.scores[str(step)] = -float(score) if smaller_is_better(str(self.best)) else float(score)

    def _committed(self, folder: Path, chosen: Callable[[Iterable[int]], set[int]]) -> None:
        """What follows a checkpoint that is whole: older ones go, and copies are made."""
        present = steps(self.folder)
        keep = chosen([int(path.name) for path in present])
        for path in present:
            if int(path.name) not in keep:
                with contextlib.suppress(OSError):  # the next one tries again
                    remove_checkpoint(path)
        if self.copies is not None:
            try:
                self.copies.follow(folder, chosen)
            except Exception as error:  # each backend has errors of its own, and none is worth the run
                self.copy_failures += 1
                say(
                    f"warning: {folder} is not copied to {self.copies.url} ({reason(error)}); training goes on, "
                    f"{self.copy_failures} failed so far, the next checkpoint tries again"
                )


def kept(
    present: Iterable[int], *, scores: Mapping[str, float], milestones: Collection[int], last: int, best: int
) -> set[int]:
    """Which of the steps at hand stay: the newest, those with the best scores, and the milestones.

    Example:
        >>> sorted(kept([1, 2, 3, 4, 5, 6], scores={"2": 0.9, "5": 0.1}, milestones={3}, last=2, best=1))
        [2, 3, 5, 6]
    """
    newest = sorted(present, reverse=True)
    by_score = sorted(
        (step for step in newest if str(step) in scores), key=lambda step: scores[str(step)], reverse=True
    )
    return {*newest[:last], *by_score[:best], *(step for step in newest if step in milestones)}


def crossed(step: int, batch_size: int, every: int) -> bool:
    """Whether the samples seen reached a multiple of ``every`` with this step.

    Example:
        >>> [step for step in range(1, 9) if crossed(step, batch_size=10, every=25)]
        [3, 5, 8]
    """
    return step * batch_size // every > (step - 1) * batch_size // every
