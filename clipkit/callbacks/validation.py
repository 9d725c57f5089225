"""The loss on data that does not train."""

from __future__ import annotations

from collections.abc import Callable

import torch

from clipkit import distributed
from clipkit.data.catalogue import open_catalogue
from clipkit.data.check import check_fields
from clipkit.data.datamodule import ShardDataModule
from clipkit.module import CLIPModule


def check_validation(data: ShardDataModule) -> None:
    """Whether ``data.val`` makes a batch, looked at before training.

    Raises:
        ValueError: If it does not.
    """
    check_fields(data.val)
    held = sum(int(open_catalogue(source, data.cache).planned.sum()) for source in data.val)
    if held < data.batch_size:
        raise ValueError(
            f"data.val holds {held:,} pairs, fewer than one batch of {data.batch_size:,}; give it more, or take a smaller data.batch_size"
        )


@torch.no_grad()
def validation_loss(
    module: CLIPModule, data: ShardDataModule, poll: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """The weighted loss over ``data.val``, in batches of the training size, averaged over batches and ranks.

    Args:
        module: The model.
        data: Its data.
        poll: Called before each batch; may raise on all ranks to give up.

    Returns:
        ``loss``, and ``loss/NAME`` where there are several.
    """
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    sums: dict[str, float] = {}
    count = 0
    try:
        for batch in data.val_batches():
            poll()
            moved = module.transfer_batch_to_device(module.on_before_batch_transfer(batch, 0), module.device, 0)
            module.training_step(moved, count)
            for name, part in module.parts.items():
                mean = distributed.all_reduce_(part.double().clone()) / distributed.world_size()
                sums[name] = sums.get(name, 0.0) + float(mean)
            count += 1
    finally:
        for child, training in modes:
            child.training = training
    assert count, "check_validation was not called"
    total = {"loss": sums.pop("total") / count}
    return total | ({f"loss/{name}": value / count for name, value in sums.items()} if len(sums) > 1 else {})
