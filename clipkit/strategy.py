"""What several ranks share: gradients alone (DDP), or the towers' weights, gradients and moments too (FSDP2).

Under FSDP2 each rank holds its share of the towers; scales and the losses' heads are whole on every rank. Checkpoints are the same as
DDP's, whole tensors under the same names and numbers, so that a run goes on under either and on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from clipkit import distributed


def strategy_of(name: Literal["ddp", "fsdp2"], world: int) -> Strategy | str:
    """Lightning's strategy for so many ranks; one rank has nothing to share."""
    if world == 1:
        return "auto"
    return ShardedTowers(world) if name == "fsdp2" else DDPStrategy(find_unused_parameters=False)


class ShardedTowers(ModelParallelStrategy):
    """FSDP2 whose checkpoints are whole.

    Args:
        world: Ranks over which the towers are spread.
    """

    def __init__(self, world: int) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimiser's state comes with the rest of the checkpoint."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on rank 0, nothing elsewhere; all ranks call it together."""
        assert self.lightning_module is not None
        return {name: x for name, x in self._whole(self.lightning_module.state_dict()).items() if x is not None}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole moments on rank 0, numbered as the optimiser numbers them; all ranks call it together."""
        found = optimizer.state_dict()
        return found | {"state": {number: self._whole(state) for number, state in found["state"].items()}}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take each rank's share of whole weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        spread = {
            name: distributed.spread_like(x, own[name]) if name in own else x
            for name, x in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(spread, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take each rank's share of whole moments."""
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {
                    key: distributed.spread_like(x, parameters[number])
                    if x.shape == parameters[number].shape and x.ndim
                    else x
                    for key, x in values.items()
                }
                for number, values in found["state"].items()
            }
            optimizer.load_state_dict(found | {"state": state})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Rank 0 writes."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """One by one, so that no rank but the writer ever holds them all."""
        found: dict[str, Tensor | None] = {}
        for name, x in tensors.items():
            whole = distributed.full(x)
            found[name] = whole.cpu() if self.is_global_zero else None
        return found
