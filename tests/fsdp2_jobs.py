"""What each rank of ``test_fsdp2`` does."""

import copy
import os
import sys
import threading
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

import clipkit
from clipkit import checkpoint, distributed
from clipkit.callbacks.checkpoint_io import FolderCheckpointIO
from clipkit.checkpoint import read_checkpoint, weight_hash
from clipkit.loading import load_pair
from clipkit.module import CLIPModule
from clipkit.strategy import ShardedTowers
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


def unspread_gradients():
    """What averaging leaves of (rank + 1) x (1, 2) beside a spread one, and the norm of all."""
    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    spread = torch.nn.Linear(3, 5, bias=False)
    distributed.shard(spread, mesh)
    like = spread.weight
    whole = distributed.spread_like(torch.full((5, 3), 2.0), like)
    plain = [torch.tensor(distributed.rank() + 1.0), torch.tensor([2.0]) * (distributed.rank() + 1)]
    distributed.average_unspread_([plain[0], whole, plain[1]])
    norm = distributed.total_norm([plain[0], whole, plain[1]])
    return (
        [float(x) for x in plain],
        distributed.full(whole).unique().tolist(),
        float(norm),
        distributed.local(like).shape[0],
    )


def background_checkpoint(folder):
    """Whether a checkpoint that is written while spread and whole weights change holds those that were saved."""
    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    spread, scale = torch.nn.Linear(3, 5, bias=False), torch.nn.Parameter(torch.tensor(1.0))
    distributed.shard(spread, mesh)
    held = ShardedTowers(distributed.world_size())._whole(spread.state_dict() | {"scale": scale})
    wanted = weight_hash(held)
    writer, write, changed = FolderCheckpointIO({}, background=True), checkpoint._write, threading.Event()
    checkpoint._write = lambda path, data: (changed.wait(20), write(path, data))[1]
    try:
        if distributed.rank() == 0:
            writer.save_checkpoint({"state_dict": held, "global_step": 1}, Path(folder) / "1")
        with torch.no_grad():
            for weight in (spread.weight, scale):
                distributed.local(weight).add_(1)
        changed.set()
        writer.wait()
        distributed.barrier()
    finally:
        checkpoint._write = write
    return weight_hash(read_checkpoint(Path(folder) / "1").model) == wanted


def mesh_of_two_dimensions():
    """The words of the refusal."""
    try:
        distributed.shard(torch.nn.Linear(2, 2), init_device_mesh("cpu", (distributed.world_size(), 1)))
    except ValueError as error:
        return str(error)


def fits(runs, beside):
    """Train each run ``(config, overrides, resume, plugin)`` on these ranks, as under torchrun.

    Returns:
        Of each, what share of the towers' numbers this rank held.
    """
    torchrun = {"RANK": distributed.rank(), "LOCAL_RANK": distributed.rank(), "TORCHELASTIC_RUN_ID": "tests"}
    torchrun |= {"WORLD_SIZE": distributed.world_size(), "LOCAL_WORLD_SIZE": distributed.world_size()}
    modules, configure = [], CLIPModule.configure_model
    before, sys.path = sys.path, [*sys.path, beside]
    os.environ |= {name: str(value) for name, value in torchrun.items()}
    CLIPModule.configure_model = lambda module: (configure(module), modules.append(module))[0]
    try:
        for config, changes, resume, plugin in runs:
            assert clipkit.fit(config, changes, resume=resume, plugin=plugin).code == 0
    finally:
        CLIPModule.configure_model = configure
        sys.path = before
        for name in torchrun:
            del os.environ[name]
    parameters = [list(module.towers.parameters()) for module in modules]
    return [sum(distributed.local(p).numel() for p in own) / sum(p.numel() for p in own) for own in parameters]
