"""Two gloo ranks against one process, on the demo's own towers, data and loss; started under ``torch.distributed.run``.

At each step every rank computes its share of the batch under DistributedDataParallel. Rank 0 then computes the whole batch alone, from the same
weights, and compares each parameter's gradient. All ranks step with the gradient of the group.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipkit import distributed
from clipkit.building import build_data, build_model, build_module
from clipkit.config import load_config
from clipkit.module import Batch, CLIPModule
from clipkit.processes import die_with_parent


class _Step(nn.Module):
    """The training step as a module's forward, so that DistributedDataParallel averages its gradients."""

    def __init__(self, module: CLIPModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return self.module.training_step(batch, 0)


def compare(config_path: str, out: str, steps: int) -> None:
    """Run ``steps`` steps and write the largest differences to ``out`` as JSON.

    ``gradient``: largest absolute difference of a parameter's gradient over that gradient's largest absolute value; ``loss``: largest relative
    difference of the loss.
    """
    config = load_config(config_path)
    distributed.init(2, gpu=False)
    pair = build_model(config)
    data = build_data(config, pair, folder=Path(out).parent)
    module = build_module(config, pair, steps=steps, warmup=0, own_losses={}).eval()  # no dropout: masks differ by rank
    group = DistributedDataParallel(_Step(module))
    optimizer = module.configure_optimizers()
    gradient = loss = 0.0
    for number, batch in enumerate(data.train_dataloader()):
        if number == steps:
            break
        whole = _gathered(batch)
        group_loss = _backward(group, module, batch)
        mean = float(distributed.all_reduce_(group_loss.clone())) / 2
        mine = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]
        if distributed.rank() == 0:
            with distributed.alone():
                reference = float(_backward(group.module, module, whole))
            loss = max(loss, abs(mean - reference) / abs(reference))
            gradient = max(gradient, _largest_difference(mine, list(module.parameters())))
        for parameter, grad in zip(module.parameters(), mine, strict=True):
            parameter.grad = grad
        optimizer.step()
    if distributed.rank() == 0:
        Path(out).write_text(json.dumps({"steps": steps, "ranks": 2, "gradient": gradient, "loss": loss}))
    distributed.barrier()


def _backward(model: nn.Module, module: CLIPModule, batch: Batch) -> Tensor:
    module.zero_grad(set_to_none=True)
    loss: Tensor = model(module.on_before_batch_transfer(batch, 0))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _gathered(batch: Batch) -> Batch:
    """All ranks' rows of a batch."""

    def everyone(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: everyone(part) for name, part in value.items()}
        return torch.cat(distributed.all_gather_variable(value)) if isinstance(value, Tensor) else value

    return {name: everyone(value) for name, value in batch.items()}


def _largest_difference(mine: list[Tensor], parameters: list[nn.Parameter]) -> float:
    differences = []
    for got, parameter in zip(mine, parameters, strict=True):
        want = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        largest = float(want.abs().max())
        differences.append(float((got - want).abs().max()) / largest if largest else float(got.abs().max()))
    return max(differences)


if __name__ == "__main__":
    die_with_parent()
    compare(sys.argv[1], sys.argv[2], int(sys.argv[3]))
