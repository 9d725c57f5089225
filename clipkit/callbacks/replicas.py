"""All ranks hold equal weights, looked at now and then."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit.replicas import disagreement


class ReplicasDiffer(RuntimeError):
    """Ranks that should hold equal bits do not."""


class CheckReplicas(Callback):
    """Compare the ranks' weights every so many steps; weights that FSDP2 spreads have no replica and are left out.

    Args:
        every: Steps between two comparisons; 0: never.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare, and stop before anything that differs is saved."""
        if self.every == 0 or trainer.global_step % self.every:
            return
        found = disagreement(pl_module.named_parameters())
        if found is not None:
            raise ReplicasDiffer(
                f"at step {trainer.global_step} {found}; they were equal {self.every} steps before or when this process began. "
                "Look at that rank's memory and device, then go on from a checkpoint of before them (--resume RUN/checkpoints/STEP)"
            )
