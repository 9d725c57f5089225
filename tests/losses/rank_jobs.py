"""What the ranks of test_ranks.py do; this file holds no tests."""

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from clipkit import distributed
from clipkit.losses.infonce import InfoNCE
from clipkit.towers.base import Features
from clipkit.towers.scale import LogitScale


class Pair(torch.nn.Module):
    """Two linear towers, their temperature and the loss."""

    def __init__(self, duplicates, log_scale):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(12, 8), torch.nn.Linear(12, 8)
        self.scale = LogitScale(log_scale)
        self.loss = [InfoNCE(self.scale.forward, duplicates=duplicates, tile=5)]

    def forward(self, x, y, batch):
        features = {
            "image": Features(F.normalize(self.image(x), dim=1)),
            "text": Features(F.normalize(self.text(y), dim=1)),
        }
        return self.loss[0](features, batch)


def data(rows, dtype):
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.randn(rows, 12, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))
    label = torch.randint(0, rows // 2, (rows,), generator=generator)
    return x, y, label


def loss_and_gradients(model, x, y, label, start):
    batch = {"id": torch.arange(start, start + len(x)), "label": label}
    loss = model(x, y, batch)
    loss.backward()
    return loss.detach()


def infonce_under_ddp(sizes, duplicates, log_scale, dtype_name):
    """This world's loss and gradients, averaged over ranks as DDP does."""
    dtype = getattr(torch, dtype_name)
    x, y, label = data(sum(sizes), dtype)
    start = sum(sizes[: distributed.rank()])
    mine = slice(start, start + sizes[distributed.rank()])
    model = DistributedDataParallel(Pair(duplicates, log_scale).to(dtype))
    loss = loss_and_gradients(model, x[mine], y[mine], label[mine], start)
    mean = distributed.all_reduce_(loss.clone()) / distributed.world_size()
    return mean.item(), {name: p.grad.tolist() for name, p in model.module.named_parameters()}


def collectives():
    """What the helpers of ``clipkit.distributed`` give on this rank."""
    rank = distributed.rank()
    rows = torch.full((rank + 1, 2), float(rank))
    sizes = distributed.gather_sizes(len(rows))
    everyone = distributed.all_gather_rows(rows, sizes)
    back = distributed.reduce_scatter_rows(everyone.clone(), sizes)
    return {
        "sizes": sizes,
        "everyone": everyone.tolist(),
        "reduced": back.tolist(),
        "json": distributed.gather_json({"rank": rank, "text": "é" * (rank + 1)}),
        "broadcast": distributed.broadcast_int(rank + 5, src=1),
        "max": distributed.all_reduce_(torch.tensor([rank]), "max").item(),
    }


def on_rank_0_raises():
    """A ValueError of rank 0's action reaches every rank."""

    def fail():
        raise ValueError("the folder is taken")

    try:
        distributed.on_rank_0(fail)
    except ValueError as error:
        return str(error)
    return "nothing was raised"
