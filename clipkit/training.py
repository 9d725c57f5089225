"""A run from its configuration to its end: folder, objects, Trainer, outcome."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipkit import distributed
from clipkit.allowed import Allowed
from clipkit.building import (
    LossFactory,
    build_data,
    build_model,
    build_module,
    build_tasks,
    choose_micro_batch,
    prepare_data,
    workers,
)
from clipkit.callbacks.agreement import Agreement, StopAgreed
from clipkit.callbacks.checkpoint_io import CheckpointLost, FolderCheckpointIO
from clipkit.callbacks.early_stop import EarlyStop
from clipkit.callbacks.evaluate import Evaluate
from clipkit.callbacks.guard import RollBack
from clipkit.callbacks.metrics import RECORD
from clipkit.callbacks.outcome import closing_lines
from clipkit.callbacks.say import say
from clipkit.callbacks.validation import check_validation, validation_loss
from clipkit.checkpoint import newest
from clipkit.checkpoint_copies import Copies
from clipkit.config import RunConfig
from clipkit.data.in_flight import named_worker_death
from clipkit.hardware import uses_gpu
from clipkit.in_training import training_in
from clipkit.launch import leave_word
from clipkit.mismatch import say_branch, say_mismatch
from clipkit.module import CLIPModule
from clipkit.plugins import Plugin, check_plugin
from clipkit.quiet import quieten
from clipkit.rollback import turn_back
from clipkit.run_folder import (
    STOPPED,
    STOPPED_CODE,
    Outcome,
    check_folder,
    check_weights,
    copies_of,
    data_state,
    find_resume,
    finished_step,
    owes_evaluation,
    record_start,
    recorded_micro_batch,
    recorded_plugin,
    stop_rule,
    stopped_early,
    write_stopped,
    write_stopped_early,
)
from clipkit.running import Run, Tasks, callbacks, clocks
from clipkit.stopping import leave_at_once
from clipkit.strategy import strategy_of
from clipkit.watching import watched


def train(
    config: RunConfig,
    folder: Path,
    *,
    ranks: tuple[int, int],
    allowed: Allowed,
    resume: str = "auto",
    own_losses: Mapping[str, LossFactory] | None = None,
    plugin: Plugin | None = None,
) -> Outcome:
    """Train on this rank, from the newest checkpoint of the folder or from the start.

    Args:
        config: The resolved configuration.
        folder: The run folder.
        ranks: Ranks a node, and nodes.
        resume: ``auto``, ``never``, a checkpoint folder, or the URL of a copy or of a run's copies.
        own_losses: Losses of the caller beside those of the configuration.
        plugin: The module that brings further losses.
        allowed: What the user allows beyond the configuration.

    Raises:
        ValueError: If the folder, the data or the model do not fit the configuration.
    """
    quieten()
    _share_cores(config)
    agreement = Agreement(clocks(config))
    agreement.listen()
    try:
        losses = dict(own_losses or {})
        asked = _Request(config, folder, ranks, resume, losses, plugin, allowed)
        return _train(asked, agreement)
    except StopAgreed:  # this process alone, before its first step
        return _stopped_before_start(config, folder, str(agreement.stopped))
    finally:
        agreement.release()


@contextmanager
def _leaving_at_once(asked: _Request, agreement: Agreement) -> Iterator[None]:
    """Until the ranks have met, a signal to any of them ends it; one process alone gives up what it does."""
    config, folder = asked.config, asked.folder

    def last_words(reason: str) -> None:
        write_stopped_early(folder, config, reason)
        print(f"stopped by {reason} before the ranks had met; nothing is lost", file=sys.stderr, flush=True)
        leave_word(STOPPED_CODE, "")

    with leave_at_once(last_words) if distributed.launched() else agreement.at_once():
        yield


def _stopped_before_start(config: RunConfig, folder: Path, reason: str) -> Outcome:
    write_stopped_early(folder, config, reason)
    say(f"stopped by {reason} before the first step; the same command begins again")
    step, steps = finished_step(newest(folder / "checkpoints")[0])
    return Outcome(folder, step, max(steps, 0), reason)


@dataclass(frozen=True)
class _Request:
    """What ``train`` was asked for."""

    config: RunConfig
    folder: Path
    ranks: tuple[int, int]
    resume: str
    own_losses: Mapping[str, LossFactory]
    plugin: Plugin | None
    allowed: Allowed


def _train(asked: _Request, agreement: Agreement) -> Outcome:
    config, folder, ranks, resume, plugin = asked.config, asked.folder, asked.ranks, asked.resume, asked.plugin
    world = ranks[0] * ranks[1]
    with _leaving_at_once(asked, agreement):
        prepare_data(
            config, allow_pipe=asked.allowed.pipe
        )  # may take long: ranks that are in a group already would time out
        distributed.init(world, gpu=uses_gpu(config), timeout=config.trainer.timeouts.start.value)
    if config.data.batch_size % world:
        raise ValueError(
            f"data.batch_size={config.data.batch_size} is no multiple of the {world} ranks; "
            f"take {config.data.batch_size // world * world or world} or {-(-config.data.batch_size // world) * world}"
        )
    allow, changed = asked.allowed.mismatch, list[str]()
    distributed.on_rank_0(
        lambda: changed.extend(check_folder(folder, config, fresh=resume == "never", allow_mismatch=allow))
    )
    copies = copies_of(config, allow_mismatch=allow)
    found, said = _agreed_resume(folder, resume, copies)
    for line in said:
        say(line)
    if said and found is None:
        say(f"warning: no checkpoint of {folder} is usable: training starts at the beginning")
    step, steps = finished_step(found)
    if found is not None and (warning := check_plugin(recorded_plugin(found), plugin)):
        say(warning)
    owed = found is not None and owes_evaluation(found)
    if found is not None and resume == "auto" and step >= steps and not owed:
        say(f"{folder} is finished: step {step} of {steps}; nothing to do. For more, name another folder with run=DIR")
        return Outcome(folder, step, steps)
    if found is not None and resume == "auto" and (early := stopped_early(folder, config)):
        say(f"{folder} is finished at step {step} of {steps}, {early}; for more, change or remove evaluate.stop")
        return Outcome(folder, step, steps, early=early)
    pair = build_model(config)
    data = build_data(config, pair, folder=folder, allow_mismatch=allow, allow_pipe=asked.allowed.pipe)
    losses = dict(asked.own_losses) | (plugin.losses if plugin else {})
    run = Run(config, folder, ranks, pair, data, losses, plugin, copies)
    end = min(steps, run.steps)
    if (
        found is not None and step >= end and not owed
    ):  # Lightning's loop is at its end there, and a longer length does not move that
        raise ValueError(
            f"--resume {resume}: its step {step} is the end of a run of {end} steps; name an earlier checkpoint"
        )
    if found is not None:
        if resume not in ("auto", "never"):
            say_branch(found, config)
        say_mismatch(data, found, changed)
    return _fit(run, found, agreement)


def _agreed_resume(folder: Path, resume: str, copies: Copies | None) -> tuple[Path | None, list[str]]:
    """Rank 0's choice of the checkpoint to go on from: on a shared disk two ranks may see two states of the folder."""
    chosen: list[tuple[Path | None, list[str]]] = []
    distributed.on_rank_0(lambda: chosen.append(find_resume(folder, resume, copies)))
    found, said = chosen[0] if chosen else (None, [])
    path = distributed.gather_json(None if found is None else str(found))[0]
    return (None if path is None else Path(path)), said


def _share_cores(config: RunConfig) -> None:
    """On CPU, leave the loader's workers cores of their own: threads that wait for each other's cores are slower than fewer."""
    if uses_gpu(config) or "OMP_NUM_THREADS" in os.environ:
        return
    cores = (os.cpu_count() or 1) // distributed.launcher_world()[0]
    torch.set_num_threads(max(1, cores - workers(config)))


def _fit(run: Run, found: Path | None, agreement: Agreement) -> Outcome:
    config = run.config
    module = build_module(
        config, run.pair, steps=run.steps, warmup=run.in_steps(config.optim.warmup), own_losses=run.own_losses
    )
    tasks = _tasks(run, module, agreement)
    if found is not None:
        check_weights(found, module.state_dict())
    if config.trainer.micro_batch == "auto":
        module.towers.micro_batch = _auto_micro_batch(run, module, found)
    distributed.on_rank_0(
        lambda: record_start(run.folder, config)
    )  # from here on nothing is wrong that could be seen before
    with watched(run):
        return _fit_watched(run, module, tasks, found, agreement)


def _fit_watched(run: Run, module: CLIPModule, tasks: Tasks, found: Path | None, agreement: Agreement) -> Outcome:
    figures: dict[str, Any] = {}
    _announce(run, module, found)
    trainer, checkpoint_io = _fit_and_turn_back(run, module, found, tasks, agreement, figures)
    early = next((callback for callback in trainer.callbacks if isinstance(callback, EarlyStop)), None)
    step = trainer.global_step
    reason = early.reason if early is not None and step < run.steps else None
    given_up = any(isinstance(callback, Evaluate) and callback.owed for callback in trainer.callbacks)
    stopped = agreement.stopped if reason is None and (step < run.steps or given_up) else None
    if checkpoint_io.failures:
        say(f"warning: {checkpoint_io.failures} checkpoints could not be written")
    if distributed.broadcast_int(int(checkpoint_io.lost is not None)) and stopped is None:
        raise CheckpointLost(
            f"step {step} was trained, but its checkpoint could not be written, so the run is not finished. Make room for "
            f"{run.folder} and run the same command again: it goes on from the newest checkpoint that was written"
        )
    if distributed.rank() == 0:
        try:
            _last_words(run, step, stopped, reason, lost=checkpoint_io.lost is not None)
        except OSError as error:  # the checkpoint is what counts
            say(f"warning: {run.folder / STOPPED} could not be written ({error})")
    distributed.barrier()
    return Outcome(run.folder, step, run.steps, stopped, figures, reason)


def _fit_and_turn_back(
    run: Run, module: CLIPModule, found: Path | None, tasks: Tasks, agreement: Agreement, figures: dict[str, Any]
) -> tuple[Any, FolderCheckpointIO]:
    """Train to the end or to a stop, beginning again from an earlier checkpoint as often as the guard allows."""
    with training_in(run.folder), named_worker_death(run.data):
        while True:
            trainer, checkpoint_io = _trainer(run, tasks, agreement, figures, module.towers.micro_batch)
            try:
                resumed = None if found is None else str(found)
                trainer.fit(module, datamodule=run.data, ckpt_path=resumed, weights_only=True)
                return trainer, checkpoint_io
            except RollBack as back:
                found = turn_back(run.folder / "checkpoints", back, module.guard, run.config.guard.rollbacks)


def _auto_micro_batch(run: Run, module: CLIPModule, found: Path | None) -> int | None:
    """The choice of the run that goes on, if its ranks were as many: another one would round otherwise. Else a new one."""
    kept = None if found is None else recorded_micro_batch(found)
    if kept is not None and kept["ranks"] == distributed.world_size():
        pairs: int | None = kept["pairs"]
        say(f"trainer.micro_batch: auto keeps the run's choice, {pairs or 'off'}")
        return pairs
    device = torch.device("cuda", torch.cuda.current_device()) if uses_gpu(run.config) else torch.device("cpu")
    choice = choose_micro_batch(run.config, run.pair, module, device=device)
    say(str(choice))
    return choice.micro_batch


def _tasks(run: Run, module: CLIPModule, agreement: Agreement) -> Tasks:
    """What is evaluated, opened and looked at now: a mistake in it must not show after a night of training."""
    tasks = build_tasks(run.config, module, run.pair, agreement.poll)
    if not run.config.data.val:
        return tasks if run.config.evaluate.tasks else None
    check_validation(run.data)

    def all_tasks() -> dict[str, Any]:
        return tasks() | {
            f"val/{key}": value for key, value in validation_loss(module, run.data, agreement.poll).items()
        }

    return all_tasks


def _trainer(
    run: Run, tasks: Tasks, agreement: Agreement, figures: dict[str, Any], micro_batch: int | None
) -> tuple[Any, FolderCheckpointIO]:
    from lightning.pytorch import Trainer

    config = run.config
    world = run.ranks[0] * run.ranks[1]
    checkpoint_io = FolderCheckpointIO(_checkpoint_info(run, micro_batch), background=config.checkpoint.background)
    silent = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="gpu" if uses_gpu(config) else "cpu",
        devices=run.ranks[0],
        num_nodes=run.ranks[1],
        strategy=strategy_of(config.trainer.strategy, world),
        precision=config.trainer.precision,
        max_epochs=1,
        logger=False,
        callbacks=callbacks(run, tasks, agreement, figures, checkpoint_io),
        plugins=[checkpoint_io],
        enable_checkpointing=False,
        use_distributed_sampler=False,
        gradient_clip_val=config.optim.clip_norm,
        deterministic=config.trainer.deterministic,
        default_root_dir=run.folder,
        **(silent | config.trainer.lightning),
    )
    return trainer, checkpoint_io


def _checkpoint_info(run: Run, micro_batch: int | None) -> dict[str, Any]:
    preprocess = {
        name: list(value) if isinstance(value, tuple) else value for name, value in run.pair.preprocess.items()
    }
    model = {
        "name": run.config.model.name,
        "pretrained": run.config.model.pretrained,
        "config": run.pair.config,
        "preprocess": preprocess,
    }
    plugin = {"module": run.plugin.module, "sha256": run.plugin.sha256} if run.plugin else None
    return {
        "model": model,
        "steps": run.steps,
        "batch_size": run.config.data.batch_size,
        "seed": run.config.seed,
        "plugin": plugin,
        "micro_batch": {"ranks": run.ranks[0] * run.ranks[1], "pairs": micro_batch},
    }


def _announce(run: Run, module: CLIPModule, found: Path | None) -> None:
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    world = run.ranks[0] * run.ranks[1]
    epoch = "streamed pairs" if run.data.epoch_samples is None else f"{run.data.epoch_samples:,} pairs an epoch"
    say(
        f"{run.config.model.name}: {trainable / 1e6:.1f}M trainable parameters, {epoch}, "
        f"{run.steps:,} steps of {run.config.data.batch_size:,} pairs on {world} rank{'s' if world > 1 else ''} -> {run.folder}"
    )
    if run.in_steps(run.config.optim.warmup) >= run.steps:  # known here where it is in steps and the length in epochs
        say(
            f"warning: optim.warmup ({run.config.optim.warmup}) is as long as the run or longer: the learning rate never gets to optim.lr"
        )
    if found is not None:
        where = "at the beginning of other data" if run.data.differences(data_state(found)) else run.data.resumed
        say(f"resuming {found}: step {found.name} of {run.steps:,}, {where}")


def _last_words(run: Run, step: int, stopped: str | None, early: str | None, *, lost: bool) -> None:
    if early is not None:
        write_stopped(run.folder, reason=early, step=step, steps=run.steps, code=0, rule=stop_rule(run.config))
    if stopped is None:
        say(
            f"finished at step {step}; figures in {run.folder / RECORD}, weights in {run.folder / 'checkpoints' / str(step)}"
        )
        for line in closing_lines(run.folder, run.config.best_figure):
            say(line)
        return
    found, _ = newest(run.folder / "checkpoints") if lost else (None, [])
    there = (0 if found is None else int(found.name)) if lost else step
    whence = f"step {there}, as its checkpoint could not be written" if lost else "there"
    say(f"stopped by {stopped} at step {step} of {run.steps}; the same command goes on from {whence}")
    write_stopped(run.folder, reason=stopped, step=there, steps=run.steps, code=STOPPED_CODE)
