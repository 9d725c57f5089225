"""The loss on data that does not train."""

from __future__ import annotations

import torch

from clipkit import distributed
from clipkit.data.datamodule import ShardDataModule
from clipkit.module import CLIPModule


@torch.no_grad()
def validation_loss(module: CLIPModule, data: ShardDataModule) -> dict[str, float]:
    """The weighted loss over ``data.val``, in batches of the training size, averaged over batches and ranks.

    Returns:
        ``loss``, and ``loss/NAME`` where there are several.
    """
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    sums: dict[str, float] = {}
    count = 0
    try:
        for batch in data.val_batches():
            moved = module.transfer_batch_to_device(module.on_before_batch_transfer(batch, 0), module.device, 0)
            module.training_step(moved, count)
            for name, part in module.parts.items():
                mean = distributed.all_reduce_(part.double().clone()) / distributed.world_size()
                sums[name] = sums.get(name, 0.0) + float(mean)
            count += 1
    finally:
        for child, training in modes:
            child.training = training
    if count == 0:
        raise ValueError("data.val holds fewer pairs than one batch; give it more, or a smaller data.batch_size")
    total = {"loss": sums.pop("total") / count}
    return total | ({f"loss/{name}": value / count for name, value in sums.items()} if len(sums) > 1 else {})
