"""What each rank of ``test_replicas`` does."""

import torch

from clipkit import distributed
from clipkit.guard import Guard
from clipkit.replicas import disagreement
from clipkit.towers.base import Features


class Optimizer:
    found_inf = None


def differ():
    """The words on equal weights, and on those of which rank 1 has one bit changed."""
    weight = torch.ones(3, 2)
    equal = disagreement([("a", torch.zeros(2)), ("b", weight)])
    if distributed.rank() == 1:
        weight.view(torch.int32)[1, 1] += 1
    return equal, disagreement([("a", torch.zeros(2)), ("b", weight)])


def zero_row():
    """Whether a zero row of rank 1 makes every rank skip, and who is named."""
    guard, image = Guard(["image"]), torch.ones(3, 2, requires_grad=True)
    rows = torch.ones(3, 1)
    rows[2] = float(distributed.rank() != 1)
    factor = guard.see({"image": Features(image * rows)}, list("abc"))
    ((image * rows).sum() * factor).backward()
    gradient = distributed.all_reduce_(image.grad / distributed.world_size())
    optimizer = Optimizer()
    guard.hold(optimizer, gradient.norm(), step=1)
    return float(optimizer.found_inf), guard.take(1).culprits
