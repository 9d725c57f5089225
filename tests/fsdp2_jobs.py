"""What each rank of ``test_fsdp2`` does."""

import copy

import torch
from torch.distributed.device_mesh import init_device_mesh

from clipkit import distributed
from clipkit.loading import load_pair
from clipkit.towers.towers import Towers

ROWS = (20, 5)


def _batch():
    draw = torch.Generator().manual_seed(0)
    count = sum(ROWS)
    text = torch.zeros(count, 16, dtype=torch.int64)
    for row in range(count):
        length = 3 + row % 12
        text[row, :length] = torch.randint(1, 400, (length,), generator=draw)
        text[row, length] = 49407
    return {"image": torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=draw), "text": text}


def _backward(towers, batch, share):
    batch = batch | {"lengths": towers.lengths(batch)}
    features = towers(batch)
    ramp = torch.linspace(0, 1, features["image"].pooled.shape[1], dtype=torch.float64)
    loss = sum(((found.pooled * ramp).sum(1) ** 2).sum() for found in features.values())
    (loss * share).backward()


def sharded_gradients(model, micro_batch):
    """Largest difference of a tensor's gradient, averaged over unequal ranks, to one process's, over the largest entry of it; and how many."""
    torch.manual_seed(0)
    pair, _, _ = load_pair(str(model), None)
    plain = Towers({"image": pair.image, "text": pair.text}).double()
    sharded = copy.deepcopy(plain)
    sharded.micro_batch = micro_batch
    sharded.shard(init_device_mesh("cpu", (distributed.world_size(),)))
    batch = _batch()
    _backward(plain, batch, 1.0)
    rank = distributed.rank()
    first = sum(ROWS[:rank])
    mine = {name: x[first : first + ROWS[rank]] for name, x in batch.items()}
    _backward(sharded, mine, distributed.world_size())  # averaging divides by it
    wanted = {name: p.grad for name, p in plain.named_parameters()}
    worst = 0.0
    for name, parameter in sharded.named_parameters():
        assert distributed.local(parameter) is not parameter, name
        found = distributed.full(parameter.grad)
        worst = max(worst, float((found - wanted[name]).abs().max() / wanted[name].abs().max()))
    return worst, len(wanted)
