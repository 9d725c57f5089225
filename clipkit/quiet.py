"""Silence for what other packages say that tells nothing about a run."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Lightning's and torch's lines that say nothing about this run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*isn't in the list of.*",
        ".*GPU available but not used.*",
        ".*`training_step` returned.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*You're resuming from a checkpoint that ended before.*",  # our loader resumes from the data's position
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*srun.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # a rule of evaluate.stop that was taken away
        ".*in eval mode at the start of training.*",  # locked towers
        ".*isinstance.treespec, LeafSpec.*",
        ".*You have overridden `.*` in `LightningModule` but have passed in a `LightningDataModule`.*",
    ):
        warnings.filterwarnings("ignore", message=message)
