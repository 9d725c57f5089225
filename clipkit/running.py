"""A run while it is put together, and what acts at the end of each of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from clipkit import distributed
from clipkit.building import LossFactory
from clipkit.callbacks.account import DataAccount
from clipkit.callbacks.agreement import Agreement
from clipkit.callbacks.checkpoint_io import FolderCheckpointIO
from clipkit.callbacks.checkpoints import SaveCheckpoints
from clipkit.callbacks.early_stop import EarlyStop
from clipkit.callbacks.ema import Ema
from clipkit.callbacks.evaluate import Evaluate
from clipkit.callbacks.guard import ReportSkipped
from clipkit.callbacks.heartbeat import Heartbeat
from clipkit.callbacks.metrics import MetricsLog, OffTheClock
from clipkit.callbacks.progress import Progress
from clipkit.callbacks.replicas import CheckReplicas
from clipkit.callbacks.stragglers import Stragglers
from clipkit.callbacks.watchdog import Watchdog
from clipkit.checkpoint_copies import Copies
from clipkit.config import Duration, RunConfig
from clipkit.data.datamodule import ShardDataModule
from clipkit.loggers import build_loggers
from clipkit.plugins import Plugin
from clipkit.towers.open_clip import OpenClipPair

Tasks = Callable[[], dict[str, Any]] | None


@dataclass
class Run:
    """What the parts of a run share while it is put together."""

    config: RunConfig
    folder: Path
    ranks: tuple[int, int]
    pair: OpenClipPair
    data: ShardDataModule
    own_losses: dict[str, LossFactory]
    plugin: Plugin | None
    copies: Copies | None
    watchdog: Watchdog | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.in_steps(self.config.trainer.length)

    def in_steps(self, duration: Duration) -> int:
        """A duration in optimiser steps."""
        return duration.steps(self.config.data.batch_size, self.data.epoch_samples)

    def in_samples(self, duration: Duration | None) -> int | None:
        """A duration in samples over all ranks; None for none and for a time, which is a clock's."""
        if duration is None or duration.unit == "seconds":
            return None
        return max(1, duration.samples(self.config.data.batch_size, self.data.epoch_samples))


def callbacks(
    run: Run, tasks: Tasks, agreement: Agreement, figures: dict[str, Any], checkpoint_io: FolderCheckpointIO
) -> list[Callback]:
    """What acts at the end of a step, in this order."""
    config, batch_size, steps = run.config, run.config.data.batch_size, run.steps
    window = max(1, run.in_steps(config.logging.every))
    by_rank: dict[str, Any] = {}
    metrics = MetricsLog(
        folder=run.folder,
        every=window,
        batch_size=batch_size,
        loggers=_loggers(run),
        csv_copy=config.logging.csv,
        progress=Progress(steps),
        counts={
            "train/checkpoint_failures": lambda: checkpoint_io.failures,
            "train/checkpoint_copy_failures": lambda: save.copy_failures,
        },
        more=by_rank,
    )
    stragglers = Stragglers(every=window, steps=steps, metrics=metrics, figures=by_rank)
    now: dict[str, Any] = {}
    evaluate = Evaluate(
        tasks=tasks,
        at_start=config.evaluate.at_start,
        every=run.in_samples(config.evaluate.every),
        batch_size=batch_size,
        steps=steps,
        agreement=agreement,
        metrics=metrics,
        figures=figures,
        now=now,
    )
    early = _early_stop(config, now)
    save = _save(run, agreement, now, checkpoint_io)
    account = DataAccount(
        folder=run.folder, data=run.data, budget=config.data.bad_samples, every=window, batch_size=batch_size
    )
    guard = ReportSkipped(every=window, steps=steps, spec=config.guard)
    replicas = CheckReplicas(config.guard.replicas_every)
    ema = [] if config.optim.ema is None else [Ema(config.optim.ema)]
    beat = Heartbeat(run.watchdog)
    return [
        beat,
        account,
        agreement,
        guard,
        replicas,
        *ema,
        stragglers,
        metrics,
        evaluate,
        *early,
        save,
        OffTheClock(metrics),
        beat.last,
    ]


def _loggers(run: Run) -> list[Any]:
    loggers: list[Any] = []
    distributed.on_rank_0(
        lambda: loggers.extend(build_loggers(run.config, run.folder))
    )  # a missing package stops all ranks
    return loggers


def _early_stop(config: RunConfig, figures: dict[str, Any]) -> list[EarlyStop]:
    stop, monitor = config.evaluate.stop, config.watched_figure
    if stop is None or monitor is None:
        return []
    return [EarlyStop(monitor=monitor, patience=stop.patience, min_delta=stop.min_delta, figures=figures)]


def _save(
    run: Run, agreement: Agreement, figures: dict[str, Any], checkpoint_io: FolderCheckpointIO
) -> SaveCheckpoints:
    config = run.config
    return SaveCheckpoints(
        folder=run.folder / "checkpoints",
        io=checkpoint_io,
        copies=run.copies,
        every=run.in_samples(config.checkpoint.by_data),
        milestone=run.in_samples(config.checkpoint.keep_every),
        batch_size=config.data.batch_size,
        steps=run.steps,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        best=config.best_figure,
        agreement=agreement,
        figures=figures,
    )


def clocks(config: RunConfig) -> dict[str, float]:
    """Seconds between two risings of each flag that goes by the clock."""
    every = {"checkpoint": config.checkpoint.by_clock, "evaluate": config.evaluate.every}
    return {
        flag: duration.value for flag, duration in every.items() if duration is not None and duration.unit == "seconds"
    }
