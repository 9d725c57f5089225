"""What the ranks of test_ranks.py do; this file holds no tests."""

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from clipkit import distributed
from clipkit.losses.distillation import Distillation
from clipkit.losses.infonce import InfoNCE
from clipkit.losses.mutual_information import MutualInformation
from clipkit.losses.ring import Ring
from clipkit.losses.sigmoid import Sigmoid
from clipkit.losses.slip import SLIP
from clipkit.losses.sogclr import SogCLR
from clipkit.losses.triplet import Triplet
from clipkit.towers.base import Features
from clipkit.towers.scale import LogitScale

PREFIXES = {3: 0.5, 8: 1.0}
LOSSES = {
    "infonce": lambda t: InfoNCE(t.forward, tile=5),
    "infonce_positives": lambda t: InfoNCE(t.forward, duplicates="positives", tile=5),
    "infonce_ignore": lambda t: InfoNCE(t.forward, duplicates="ignore", label_smoothing=0.1, tile=5),
    "infonce_one_sided": lambda t: InfoNCE(t.forward, sides="second", tile=5),
    "infonce_prefixes_ring": lambda t: InfoNCE(
        t.forward, prefixes=PREFIXES, duplicates="positives", exchange=Ring(), tile=5
    ),
    "sigmoid": lambda t: Sigmoid(t.forward, lambda: t.bias, tile=5),
    "sigmoid_ring": lambda t: Sigmoid(t.forward, lambda: t.bias, prefixes=PREFIXES, exchange=Ring(), tile=5),
    "distillation": lambda t: Distillation(t.forward, teacher_scale=50.0, tile=5),
    "distillation_ring": lambda t: Distillation(t.forward, prefixes=PREFIXES, exchange=Ring(), tile=5),
    "triplet": lambda t: Triplet(),
    "triplet_warmup": lambda t: Triplet(warmup=1),
    "infonce_bound": lambda t: MutualInformation(t.forward, bound="infonce"),
    "dv": lambda t: MutualInformation(t.forward, bound="dv"),
    "smile": lambda t: MutualInformation(t.forward, bound="smile", clip=2.0),
    "slip": lambda t: SLIP(8, views=("image", "text"), hidden=16, out=6),
    "sogclr": lambda t: SogCLR(t.forward, 64, gamma=0.4, eps=1e-3),
}
STEPS = {"sogclr": 2}
"""Losses with a memory take a second step."""


class Pair(torch.nn.Module):
    """Two linear towers, their temperature and one loss."""

    def __init__(self, name, log_scale):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(12, 8), torch.nn.Linear(12, 8)
        self.scale = LogitScale(log_scale, bias=-2.0 if name.startswith("sigmoid") else None)
        if name in (
            "triplet",
            "triplet_warmup",
            "slip",
        ):  # they know no temperature, and DDP waits for a gradient of all that train
            self.scale.requires_grad_(False)
        self.loss = LOSSES[name](self.scale)

    def forward(self, x, y, batch):
        features = {
            "image": Features(F.normalize(self.image(x), dim=1)),
            "text": Features(F.normalize(self.text(y), dim=1)),
        }
        return self.loss(features, batch)


def data(rows, dtype):
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.randn(rows, 12, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))
    label = torch.randint(0, rows // 2, (rows,), generator=generator)
    return x, y, label


def loss_and_gradients(model, x, y, label, start, steps=1):
    """The last of some steps, each on the inputs turned round."""
    for step in range(steps):
        model.zero_grad()
        batch = {"id": torch.arange(start, start + len(x)), "label": label, "position": 0}
        batch |= {"teacher_image": x[:, :5].float(), "teacher_text": y[:, :5].float()}
        loss = model(x * (-1) ** step, y, batch)
        loss.backward()
    return loss.detach()


def under_ddp(name, sizes, log_scale, dtype_name):
    """This world's loss and gradients, averaged over ranks as DDP does."""
    dtype = getattr(torch, dtype_name)
    x, y, label = data(sum(sizes), dtype)
    start = sum(sizes[: distributed.rank()])
    mine = slice(start, start + sizes[distributed.rank()])
    model = DistributedDataParallel(Pair(name, log_scale).to(dtype))
    loss = loss_and_gradients(model, x[mine], y[mine], label[mine], start, STEPS.get(name, 1))
    mean = distributed.all_reduce_(loss.clone()) / distributed.world_size()
    named = model.module.named_parameters()
    return mean.item(), {name: p.grad.tolist() for name, p in named if p.requires_grad}


def all_under_ddp(names, sizes, log_scale, dtype_name):
    """Several losses in one job."""
    return {name: under_ddp(name, sizes, log_scale, dtype_name) for name in names}


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
