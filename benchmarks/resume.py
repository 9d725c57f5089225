"""Resuming deep in a large run: seconds to the first batch, and what a worker's memory grows by.

100,000 shard names are links to 10 real shards of 10,000 small images with captions, listed in an ``index.json`` as clipkit writes it:
1e9 samples. A fresh process goes on in the middle of the second epoch; its clock runs from the end of the imports to the first batch of a
worker. Memory is RssAnon + RssShmem of the worker after 10,000 random reads, less that of a worker that did the same on one shard.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import anonymous_megabytes, figure, finish, quick
from photos import caption, photographs
from torch.utils.data import DataLoader

from clipkit.data.augment import Augment
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.dataset import Request
from clipkit.data.index import VERSION, build_index, sidecar_path, write_sidecar
from clipkit.data.source import Source, expand_shards
from clipkit.data.transforms import Preprocess

NAMES, REAL, SHARD = 100_000, 10, 10_000
POSITION = NAMES * SHARD * 3 // 2 // 256 * 256
READS, BATCH = 10_000, 256


def make_shards(folder: Path) -> None:
    """The real shards, their links and the list of them."""
    images = photographs(50, side=32)
    entries: list[dict[str, Any]] = []
    (folder / "names").mkdir()
    for shard in range(REAL):
        path = folder / f"{shard}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(SHARD):
                key = f"{shard * SHARD + number:09d}"
                for name, data in ((f"{key}.jpg", images[number % 50]), (f"{key}.txt", caption(number).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        index = build_index(path)
        entries.append({"count": len(index), "size": index.size, "fingerprint": index.fingerprint})
        write_sidecar(index, sidecar_path(path))
    for number in range(NAMES):
        real, name = folder / f"{number % REAL}.tar", folder / "names" / f"{number:06d}.tar"
        name.symlink_to(real)
        sidecar_path(name).symlink_to(sidecar_path(real))
    shards = [{"name": f"{number:06d}.tar"} | entries[number % REAL] for number in range(NAMES)]
    (folder / "names" / "index.json").write_text(json.dumps({"version": VERSION, "shards": shards}, indent=1))


def tokens(texts: list[str]) -> torch.Tensor:
    """A stand-in for a tokenizer, whose tables are not the subject."""
    return torch.zeros(len(texts), 1, dtype=torch.int64)


def module(shards: list[str]) -> ShardDataModule:
    """The data of a run with one worker."""
    return ShardDataModule(
        train=[Source("pairs", tuple(shards))],
        batch_size=BATCH,
        length=1 << 40,
        seed=0,
        tokenize=tokens,
        augment=Augment((32, 32)),
        preprocess=Preprocess((32, 32)),
        workers=1,
        ranks=(0, 1),
    )


def first_batch(folder: str) -> float:
    """Seconds to the first batch at POSITION; imports are over."""
    started = time.perf_counter()
    data = module(expand_shards(f"{folder}/names/{{000000..{NAMES - 1:06d}}}.tar"))
    data.load_state_dict({**data.state_dict(), "position": POSITION})
    batch = next(iter(data.train_dataloader()))
    assert batch["position"] == POSITION
    assert batch["image"].shape == (BATCH, 3, 32, 32)
    return time.perf_counter() - started


def worker_memory(folder: str, names: int) -> float:
    """Megabytes of a worker after READS samples from anywhere in so many shards."""
    data = module(expand_shards(f"{folder}/names/{{000000..{names - 1:06d}}}.tar"))
    positions = np.random.default_rng(0).integers(0, data.epoch_samples, (READS // BATCH, BATCH))
    requests = [Request(0, BATCH, data.plan.rows(row)) for row in positions]
    loader = DataLoader(
        data.dataset, batch_sampler=requests, collate_fn=as_it_is, num_workers=1, persistent_workers=True
    )
    batches = iter(loader)
    assert sum(len(batch["key"]) for batch in batches) == READS // BATCH * BATCH
    return anonymous_megabytes(batches._workers[0].pid)


def as_it_is(batch: Any) -> Any:
    """A batch is made as one."""
    return batch


def child(folder: str, *arguments: str) -> float:
    """A figure, measured by a fresh process."""
    command = [sys.executable, __file__, "--child", folder, *arguments]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    """Compare 5 resumes (``--quick``: 3), and one worker of either kind."""
    repetitions = 3 if quick(__doc__ or "") else 5
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder))
        seconds = [child(folder, "first") for _ in range(repetitions)]
        one, many = (child(folder, "memory", str(names)) for names in (1, NAMES))
    figures = {
        "seconds": figure(seconds),
        "grown_mb": figure([many - one]),
        "one_shard_mb": figure([one]),
        "all_shards_mb": figure([many]),
    }
    return finish("resume", peer="the same worker with one shard", figures=figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        where, kind, *names = sys.argv[2:]
        print(first_batch(where) if kind == "first" else worker_memory(where, int(names[0])))
        sys.exit(0)
    sys.exit(main())
