"""Two real ranks over gloo: one account, one state, each sample once."""

import json

import torch.distributed as dist
from torch import multiprocessing

from clipkit.data.augment import Augment
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.source import Source
from clipkit.data.transforms import Preprocess

from .conftest import tokenize


def spoil(number, members):
    return members | {"txt": b""} if number in (4, 9, 17) else members


def run(rank, world, shards, folder):
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    data = ShardDataModule(
        train=[Source("pairs", shards)],
        batch_size=8,
        length=160,
        seed=0,
        tokenize=tokenize,
        augment=Augment((16, 16)),
        preprocess=Preprocess((16, 16)),
        trace=folder / str(world),
    )
    for batch in data.train_dataloader():
        data.advance(batch)
    (folder / f"state.{world}.{rank}.json").write_text(json.dumps(data.state_dict()))
    if world > 1:
        dist.destroy_process_group()


def traced(folder, world):
    lines = [(folder / str(world) / f"samples.rank{rank}.jsonl").read_text().splitlines() for rank in range(world)]
    return [sorted(key for line in step for key in json.loads(line)["keys"]) for step in zip(*lines, strict=True)]


def test_two_ranks_are_one(make_shards, tmp_path):
    shards = make_shards([40], change=spoil)
    for world in (1, 2):
        multiprocessing.start_processes(run, (world, shards, tmp_path), nprocs=world, start_method="fork")
    states = [json.loads((tmp_path / f"state.{name}.json").read_text()) for name in ("1.0", "2.0", "2.1")]
    assert states[0] == states[1] == states[2]
    assert states[0]["bad"] == {"pairs": {str(epoch): {"no_caption": 3} for epoch in range(4)}}
    assert traced(tmp_path, 1) == traced(tmp_path, 2)
