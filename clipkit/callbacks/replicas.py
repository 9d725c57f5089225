"""All ranks hold equal weights, looked at now and then, and before any checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit.replicas import disagreement, replicated


class ReplicasDiffer(RuntimeError):
    """Ranks that should hold equal bits do not."""


class CheckReplicas(Callback):
    """Compare the ranks' weights and buffers every so many steps, and before each checkpoint: what differs is not saved.

    Weights that FSDP2 spreads have no replica and are left out. So are the running statistics of batch norms: each rank's forward moves its own
    by its own samples, and only the next one of DDP gives all ranks those of rank 0, which are the run's and the checkpoint's. All other buffers
    (masks, constants, what a loss remembers) must be equal.

    Args:
        every: Steps between two comparisons; 0: never, nor before a checkpoint.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._equal = -1  # the last step that they were found equal at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare, and stop before anything that differs is saved."""
        if self.every and trainer.global_step % self.every == 0:
            self._compare(trainer.global_step, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint between two comparisons is one of them; Lightning asks all ranks, before anything is written."""
        if self.every and trainer.global_step != self._equal:
            self._compare(trainer.global_step, pl_module)

    def _compare(self, step: int, module: LightningModule) -> None:
        found = disagreement(replicated(module))
        if found is not None:
            before = f"at step {self._equal}" if self._equal >= 0 else "when this process began"
            raise ReplicasDiffer(
                f"at step {step} {found}; they were equal {before}. "
                "Look at that rank's memory and device, then go on from a checkpoint of before them (--resume RUN/checkpoints/STEP)"
            )
        self._equal = step
