"""What the ranks of test_scaling.py do: they count what a loss sends, multiplies and allocates."""

import json
import tempfile
from collections import Counter
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from clipkit import distributed
from clipkit.losses.infonce import infonce
from clipkit.losses.ring import Ring
from clipkit.losses.sigmoid import sigmoid


def nbytes(x):
    return x.numel() * x.element_size()


GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"  # since torch 2.14


class Counted:
    """The collectives of torch.distributed, each with the bytes that go in."""

    def __init__(self):
        self.bytes = Counter()
        self.real = {name: getattr(dist, name) for name in ("all_gather", GATHER, "all_reduce", "batch_isend_irecv")}

    def all_gather(self, out, x, **more):
        self.bytes["gather"] += nbytes(x)
        return self.real["all_gather"](out, x, **more)

    def into_tensor(self, out, x, **more):
        self.bytes["gather"] += nbytes(x)
        work = self.real[GATHER](out, x, **more)
        work.wait()  # gloo holds a copy of everything while it gathers, which is none of the loss's
        return work

    def all_reduce(self, x, **more):
        # gloo has no reduce-scatter: the gradients of the columns (N, D) are all-reduced in its place
        self.bytes["scatter" if x.ndim == 2 else "reduce"] += nbytes(x)
        return self.real["all_reduce"](x, **more)

    def batch_isend_irecv(self, operations):
        self.bytes["ring"] += sum(nbytes(one.tensor) for one in operations if one.op is dist.isend)
        return self.real["batch_isend_irecv"](operations)

    def __enter__(self):
        mine = {name: getattr(self, "into_tensor" if name == GATHER else name) for name in self.real}
        self.patch = mock.patch.multiple(dist, **mine)
        self.patch.start()
        return self.bytes

    def __exit__(self, *_):
        self.patch.stop()


def most_allocated(work):
    """The highest number of bytes that torch held above those at the start."""
    with Counted(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        with open(file.name) as trace:
            events = json.load(trace)["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def cost(kind, exchange, pairs, width, tile):
    """Counted on this rank: bytes by collective, FLOPs of products, bytes held."""
    world, rank = distributed.world_size(), distributed.rank()
    generator = torch.Generator().manual_seed(rank)
    x, y = (F.normalize(torch.randn(pairs // world, width, generator=generator), dim=1) for _ in range(2))
    leaves = [x, y, torch.tensor(10.0), torch.tensor(-3.0)]
    x, y, scale, bias = (leaf.requires_grad_() for leaf in leaves)
    way = Ring() if exchange == "ring" else None

    def step():
        if kind == "infonce":
            infonce(x, y, scale, exchange=way, tile=tile).backward()
        else:
            sigmoid(x, y, scale, bias, exchange=way, tile=tile).backward()
        x.grad = y.grad = scale.grad = bias.grad = None

    def product(a, b, c, *_, **__):
        return 2 * b[0] * b[1] * c[1]

    with Counted() as counted, FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product}) as flops:
        step()
    flops = flops.get_total_flops() - 2 * len(x) * width  # the scale's gradient, read off the rows'
    return dict(counted), flops, most_allocated(step)
