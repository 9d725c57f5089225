"""The training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from clipkit import distributed
from clipkit.batch_statistics import BatchStatistics
from clipkit.guard import Guard
from clipkit.losses.base import Loss
from clipkit.optim import Optim
from clipkit.towers.scale import LogitScale
from clipkit.towers.teacher import Teacher
from clipkit.towers.towers import Towers

Batch = dict[str, Any]


class CLIPModule(LightningModule):
    """Towers pulled together by weighted losses.

    Args:
        towers: One tower a field.
        losses: Losses by name; each gathers over ranks by itself.
        weights: Weight of each loss in the total.
        scales: The temperature of each pair of fields, by the pair's name (``image_text``).
        optim: Optimiser and schedule.
        seed: Seeds dropout and the like, anew at each step from (seed, position, rank), so that no generator's state needs saving.
        teachers: Frozen models whose embeddings join the features; they are no part of the module: not trained, counted, saved or averaged.
    """

    def __init__(
        self,
        *,
        towers: Towers,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float],
        scales: Mapping[str, LogitScale],
        optim: Optim,
        seed: int,
        teachers: Sequence[Teacher] = (),
    ) -> None:
        super().__init__()
        self.towers = towers
        self.losses = nn.ModuleDict(dict(losses))
        self.weights = dict(weights)
        self.scales = nn.ModuleDict(dict(scales))
        self.optim = optim
        self.seed = seed
        self.teachers = tuple(teachers)  # a tuple is no submodule
        self.parts: dict[str, Tensor] = {}
        """Each loss of the last step on this rank, detached."""
        self._trained: tuple[nn.Parameter, ...] = ()
        self.guard = Guard(towers.fields())
        self.statistics = BatchStatistics(self.towers)
        self.grad_norm = torch.zeros(())
        """Norm of the last step's whole gradient, before clipping."""

    def configure_model(self) -> None:
        """Spread the towers over the ranks where the strategy asks for it (FSDP2); scales and losses stay whole on each."""
        if self.device_mesh is not None and not self.towers.sharded:
            for whole in (self.scales, self.losses):  # as DDP does for all it holds
                distributed.take_from_rank_0(whole)
            self.towers.shard(self.device_mesh["data_parallel"])  # of two dimensions, FSDP2 would copy over the first

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step: each tower once, each loss once."""
        self.statistics.keep()
        features = self.towers(batch)
        sound = self.guard.see(features, batch["key"])
        for teacher in self.teachers:
            features |= teacher(batch, self.towers.micro_batch)
        parts = {name: loss(features, batch) for name, loss in self.losses.items()}
        return self.total(parts) * sound

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CLIPModule:
        """Teachers move with the module."""
        for teacher in self.teachers:
            teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses; remembers them, detached, for the logger."""
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        self.parts = {name: part.detach() for name, part in parts.items()} | {"total": total.detach()}
        return total

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Read the text lengths while tokens are on the CPU, so that no step waits for a GPU to tell them."""
        return batch | {"lengths": self.towers.lengths(batch)}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move tensors; keys, positions and records stay."""
        return {name: _moved(value, device) for name, value in batch.items()}

    def on_train_start(self) -> None:
        """Look for batch norms again: Lightning replaces them where they are to be synchronised."""
        self.statistics = BatchStatistics(self.towers)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw this step's dropout masks from (seed, position, rank) alone."""
        seed_generators(step_seed(self.seed, int(batch["position"]), distributed.rank()), self.device)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """One norm of the whole gradient serves log, guard and clipping."""
        gradients = [p.grad for p in self._trained if p.grad is not None]
        if self.device_mesh is not None:
            distributed.average_unspread_(gradients)
        self.grad_norm = distributed.total_norm(gradients)
        self.guard.hold(optimizer, self.grad_norm, loss=self.parts.get("total"), step=self.global_step + 1)
        self.statistics.put_back_(self.guard.flag)
        for loss in self.losses.values():
            assert isinstance(loss, Loss)
            loss.take_back_(self.guard.flag)
        if gradient_clip_val is not None:
            shrink = (gradient_clip_val / (self.grad_norm + 1e-6)).clamp(max=1)
            torch._foreach_mul_([distributed.local(x) for x in gradients], shrink)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with its schedule; the scales are clamped right after each step, before anything reads or saves them."""
        optimizer = self.optim.build(self.named_parameters())
        self._trained = tuple(p for p in self.parameters() if p.requires_grad)  # the module's tree is slow to walk
        optimizer.register_step_post_hook(lambda *_: self.clamp_scales())
        return optimizer

    def clamp_scales(self) -> None:
        """Keep each scale in [1, 100], and count the steps that would have left it; nothing is read back."""
        for name, scale in self.scales.items():
            assert isinstance(scale, LogitScale)
            clamped = scale.clamp_()
            self.guard.clamps[name] = clamped + self.guard.clamps.get(name, 0)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of one device.

    ``torch.manual_seed`` seeds all kinds of devices. For each that this machine lacks it keeps the call and a stack trace for later: at every
    step that would be milliseconds, and memory that grows.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def step_seed(seed: int, position: int, rank: int) -> int:
    """A 64-bit seed of a step, different for neighbouring seeds, positions and ranks (SplitMix64's finaliser)."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return {name: _moved(item, device) for name, item in value.items()} if isinstance(value, dict) else value
