"""When checkpoints are written and which are kept, and how Lightning's dictionary becomes clipkit's folder."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit import distributed
from clipkit.callbacks.agreement import Agreement
from clipkit.callbacks.say import say
from clipkit.checkpoint import read_checkpoint, remove_checkpoint, remove_unfinished, steps, write_checkpoint
from clipkit.config.evaluate import smaller_is_better

_IN_INFO = ("epoch", "global_step", "pytorch-lightning_version", "loops", "ShardDataModule", "guard")


class FolderCheckpointIO(CheckpointIO):
    """Lightning's checkpoint dictionary as a checkpoint folder and back.

    Args:
        info: What else ``state.json`` holds: the model's configuration, fingerprints.
    """

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.info = dict(info)
        self.failures = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the folder; a disk that refuses costs this checkpoint, not the run nor the last good one."""
        known = {name: checkpoint[name] for name in _IN_INFO if name in checkpoint}
        rest = {name: value for name, value in checkpoint.items() if name not in known and name != "state_dict"}
        versions = {"torch": torch.__version__, "lightning": lightning.__version__, "python": platform.python_version()}
        info = self.info | {"step": checkpoint["global_step"], "versions": versions, "lightning": known}
        try:
            write_checkpoint(Path(path), model=checkpoint["state_dict"], state=rest, info=info)
        except OSError as error:
            self.failures += 1
            say(
                f"warning: checkpoint {path} could not be written ({error}); training goes on, {self.failures} failed so far, "
                "the last good one stays"
            )

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder that verifies."""
        stored = read_checkpoint(Path(path))
        return {"state_dict": stored.model, **stored.state, **stored.info["lightning"]}

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a folder."""
        remove_checkpoint(Path(path))


class SaveCheckpoints(Callback):
    """Save every so many samples, when a clock or a signal says so, and at the end; keep the newest and the best.

    Where the best are kept, a step at which the deciding figure was measured is saved too: a figure belongs to the weights that it was
    measured on.

    Args:
        folder: ``RUN/checkpoints``.
        every: Samples between checkpoints, or None for clock, signal and end alone.
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
        every: int | None,
        batch_size: int,
        steps: int,
        keep_last: int,
        keep_best: int,
        best: str | None,
        agreement: Agreement,
        figures: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.every = every
        self.batch_size = batch_size
        self.steps = steps
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.best = best
        self.agreement = agreement
        self.figures = figures
        self.scores: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The figure of each checkpoint that has one, negated where smaller is better."""
        return {"scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the figures of an earlier part of the run."""
        self.scores = dict(state_dict["scores"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear what a killed writer left."""
        if trainer.is_global_zero:
            remove_unfinished(self.folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if this step is one to save at."""
        step = trainer.global_step
        by_clock = self.agreement.take("checkpoint")
        last = step >= self.steps or trainer.should_stop
        measured = self.best is not None and self.figures.get(self.best) is not None
        if by_clock or last or measured or (self.every is not None and crossed(step, self.batch_size, self.every)):
            self._save(trainer, step)

    def _save(self, trainer: Trainer, step: int) -> None:
        score = self.figures.get(self.best) if self.best is not None else None
        if score is not None and math.isfinite(score):  # the loss of a run that diverged is nobody's best
            self.scores[str(step)] = -float(score) if smaller_is_better(str(self.best)) else float(score)
        trainer.save_checkpoint(self.folder / str(step))
        if trainer.is_global_zero:
            self._prune()
        distributed.barrier()

    def _prune(self) -> None:
        present = steps(self.folder)
        by_score = sorted(present, key=lambda path: self.scores.get(path.name, float("-inf")), reverse=True)
        best = [path for path in by_score if path.name in self.scores][: self.keep_best]
        keep = {*present[: self.keep_last], *best}
        for path in present:
            if path not in keep:
                remove_checkpoint(path)


def crossed(step: int, batch_size: int, every: int) -> bool:
    """Whether the samples seen reached a multiple of ``every`` with this step.

    Example:
        >>> [step for step in range(1, 9) if crossed(step, batch_size=10, every=25)]
        [3, 5, 8]
    """
    return step * batch_size // every > (step - 1) * batch_size // every
