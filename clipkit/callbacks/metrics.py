"""The run's figures: computed on window steps only, averaged over ranks, written at once.

``metrics.jsonl`` holds one object a logged step and is the record; CSV, TensorBoard and wandb are copies of it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from clipkit import distributed
from clipkit.callbacks.lines import Lines
from clipkit.callbacks.progress import Progress
from clipkit.callbacks.say import say
from clipkit.loggers import close_loggers
from clipkit.module import CLIPModule

RECORD = "metrics.jsonl"


class MetricsLog(Callback):
    """Write the figures of a window.

    Args:
        folder: The run folder.
        every: Steps of a window; the last may be shorter.
        batch_size: Pairs of one step over all ranks.
        loggers: Lightning loggers that get the same figures.
        csv_copy: Whether to keep ``metrics.csv`` as well.
        progress: Shows the figures to the user.
        counts: Faults by name, as rank 0 counted them; each is written from its first on.
        more: Figures of the window that another callback has put there.
    """

    def __init__(
        self,
        *,
        folder: Path,
        every: int,
        batch_size: int,
        loggers: Sequence[Logger],
        csv_copy: bool,
        progress: Progress,
        counts: Mapping[str, Callable[[], int]] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.every = every
        self.batch_size = batch_size
        self.loggers = loggers
        self.csv_copy = csv_copy
        self.progress = progress
        self.counts = dict(counts or {})
        self.more = {} if more is None else more
        self._lines = Lines(folder / RECORD)
        self._window_start = self.step_end = 0.0
        self._waited = 0.0
        self._window_steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the record back to the step that training goes on from, and start the clock."""
        if trainer.is_global_zero:
            cut_back(self.folder / RECORD, trainer.global_step or -1)  # from the start again, its figures too
            self.progress.start(trainer.global_step)
        self._window_start = self.step_end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last step's end as waiting for data."""
        self._waited += time.perf_counter() - self.step_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the window if this step ends one."""
        self._window_steps += 1
        if self._ends_window(trainer.global_step):
            assert isinstance(pl_module, CLIPModule)
            faults = {name: count() for name, count in self.counts.items() if count()}
            figures = {**self._figures(trainer, pl_module, batch), **self.more, **faults}
            self.write(trainer, trainer.global_step, figures)
        else:
            self.progress.step(trainer.global_step)
        self.step_end = time.perf_counter()

    def skip(self) -> None:
        """Leave out what other callbacks did since the step's end: an evaluation is neither training nor waiting for data."""
        now = time.perf_counter()
        self._window_start += now - self.step_end
        self.step_end = now

    def write(self, trainer: Trainer, step: int, figures: Mapping[str, Any]) -> None:
        """Write figures of a step, on rank 0."""
        if not trainer.is_global_zero:
            return
        record = {"step": step, "samples": step * self.batch_size, **figures}
        self._lines.add(json.dumps(_strict(record)))
        for logger in self.loggers:
            logger.log_metrics({k: v for k, v in figures.items() if isinstance(v, int | float)}, step)
        self.progress.show(step, record)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar and the loggers, and make the CSV copy."""
        close_loggers(self.loggers, failed=False)
        if trainer.is_global_zero:
            self.progress.stop()
            if not self._lines.write():
                say(
                    f"warning: the last {len(self._lines.waiting)} lines of {self.folder / RECORD} could not be written"
                )
            if self.csv_copy:
                try:
                    write_csv(self.folder / RECORD, self.folder / "metrics.csv")
                except OSError as error:
                    say(f"warning: metrics.csv could not be written ({error}); {RECORD} is the record")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back and close the loggers."""
        self.progress.stop()
        close_loggers(self.loggers, failed=True)

    def _ends_window(self, step: int) -> bool:
        return step % self.every == 0 or step == self.progress.steps

    def _figures(self, trainer: Trainer, module: CLIPModule, batch: Mapping[str, Any]) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = max(now - self._window_start, 1e-9)
        known = {"train/data_wait": self._waited / elapsed}
        for field, (length, share) in module.towers.trimmed(batch).items():
            known |= {f"train/{field}_length": length, f"train/{field}_tokens": share}
        names = list(module.parts)
        numbers = torch.tensor(list(known.values()), dtype=torch.float64, device=module.device)
        local = torch.cat([torch.stack([module.parts[name].double() for name in names]), numbers])
        mean = (distributed.all_reduce_(local) / distributed.world_size()).tolist()
        parts = dict(zip(names, mean, strict=False))
        samples = self._window_steps * self.batch_size
        figures = {"train/loss": parts.pop("total")}
        figures |= {f"train/loss/{name}": value for name, value in parts.items()}
        scales = {name: float(scale().detach()) for name, scale in module.scales.items()}
        figures |= _by_scale("train/logit_scale", scales)
        clamps = {name: int(module.guard.clamps.pop(name, 0)) for name in scales}  # steps of the window
        figures |= _by_scale("train/logit_scale_clamps", clamps)
        figures["train/lr"] = last_lr(trainer)
        figures["train/grad_norm"] = float(module.grad_norm)
        figures["train/samples_per_second"] = samples / elapsed
        figures |= dict(zip(known, mean[len(names) :], strict=True))
        self._window_start, self._waited, self._window_steps = now, 0.0, 0
        return figures


def _by_scale(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """A figure of each scale, under the pair's name where there are several."""
    return {f"{name}/{pair}" if len(values) > 1 else name: value for pair, value in values.items()}


class OffTheClock(Callback):
    """Stands last: evaluations and checkpoints before it do not count as training time.

    Args:
        metrics: Whose clock it is.
    """

    def __init__(self, metrics: MetricsLog) -> None:
        self.metrics = metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step begins now."""
        self.metrics.skip()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on from here."""
        self.metrics.skip()


def last_lr(trainer: Trainer) -> float:
    """The learning rate that the last step trained with, of the layers nearest to the output."""
    return max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)


def cut_back(record: Path, step: int) -> None:
    """Drop the lines after ``step``, and a last line that a kill cut short; the file is replaced whole."""
    if not record.is_file():
        return
    kept = [line for line in record.read_text().splitlines() if _step_of(line) <= step]
    temporary = record.with_suffix(".jsonl.writing")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    os.replace(temporary, record)


def write_csv(record: Path, out: Path) -> None:
    """The record as CSV, one column a figure."""
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _strict(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without NaN and infinities, which JSON does not have: they become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
