"""An exponential moving average of the weights, beside the weights (Polyak & Juditsky, 1992)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from clipkit import distributed
from clipkit.module import CLIPModule


class Ema(Callback):
    """Keep ``average = decay * average + (1 - decay) * weights`` after each step; a step that was skipped leaves it alone.

    It starts as the weights, and stands in every checkpoint under ``callbacks``.

    Args:
        decay: Share of the average that stays in a step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}
        self._followed: list[Tensor] = []  # what they follow, in their order: the module's tree is slow to walk

    def state_dict(self) -> dict[str, Any]:
        """The averages by the parameters' names."""
        return {"weights": {name: distributed.full(x) for name, x in self.weights.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.weights = dict(state_dict["weights"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, or with what a checkpoint held."""
        known, self.weights = self.weights, {}
        self._followed = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                kept = known.get(name)
                start = parameter.detach() if kept is None else distributed.spread_like(kept, parameter)
                self.weights[name] = start.to(parameter.device, copy=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move towards the weights."""
        assert isinstance(pl_module, CLIPModule)
        with torch.no_grad():
            weights = [distributed.local(parameter) for parameter in self._followed]
            averages = [distributed.local(x) for x in self.weights.values()]
            moved = list(torch._foreach_sub(weights, averages))
            torch._foreach_mul_(moved, (1 - self.decay) * (1 - pl_module.guard.flag))
            torch._foreach_add_(averages, moved)
