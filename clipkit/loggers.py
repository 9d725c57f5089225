"""Lightning's loggers for those who asked; each gets the figures of ``metrics.jsonl``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit.config import RunConfig
from clipkit.data.urls import shown

_ID = "wandb.json"


def build_loggers(config: RunConfig, folder: Path) -> list[Any]:
    """TensorBoard and wandb as configured; the wandb run's id is kept in the run folder, so that a resumed run is the same run.

    Raises:
        ValueError: If a logger's package is missing; the message names the install line.
    """
    loggers: list[Any] = []
    if config.logging.tensorboard:
        loggers.append(_tensorboard(folder))
    if config.logging.wandb is not None:
        loggers.append(_wandb(config, folder))
    return loggers


def close_loggers(loggers: Sequence[Any], *, failed: bool) -> None:
    """Let them write what they hold. A wandb run that stayed open would take in the next run of this process."""
    from lightning.pytorch.loggers import WandbLogger

    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(int(failed))


def _tensorboard(folder: Path) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=folder, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise ValueError(
            "logging.tensorboard=true needs TensorBoard: pip install tensorboard, or leave it out"
        ) from error


def _wandb(config: RunConfig, folder: Path) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    spec = config.logging.wandb
    assert spec is not None
    kept = folder / _ID
    identity = json.loads(kept.read_text())["id"] if kept.is_file() else None
    logger = WandbLogger(
        project=spec.project,
        entity=spec.entity,
        name=spec.name or folder.name,
        id=identity,
        save_dir=folder,
        offline=spec.mode == "offline",
    )
    given, sys.argv = (
        sys.argv,
        [shown(argument) for argument in sys.argv],
    )  # wandb sends them as they stand when it begins
    try:
        identity = logger.experiment.id
    finally:
        sys.argv = given
    kept.write_text(json.dumps({"id": identity}) + "\n")
    return logger
