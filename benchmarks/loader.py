"""How fast a whole loader gives batches: two workers of one thread each, images of 224 pixels and open_clip's tokens, in samples a second.

The peer is open_clip's training pipeline, rebuilt here in a few lines on webdataset: shards and samples shuffled with its buffers, Pillow,
open_clip's own transform and tokenizer, batches of the main process. Clipkit's batches arrive as uint8 and are normalised in the main process,
which a tower does in training; both end as float32. Processes are started and the first batches taken before the clock runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import open_clip
import torch
import webdataset as wds
from common import figure, finish, quick
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import image_transform
from photos import photographs, write_shards
from torch import Tensor

from clipkit.data.augment import Augment
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.source import Source
from clipkit.data.transforms import Preprocess

SIZE, BATCH, WORKERS, WARM_UP = 224, 64, 2, 8
SHARDS, SHARD = 8, 500
Pair = tuple[Tensor, Tensor]


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def clipkit_batches(paths: list[str], seed: int) -> Iterator[Pair]:
    """Float32 images (B, 3, 224, 224) and tokens (B, 77), for ever."""
    data = ShardDataModule(
        train=[Source("pairs", tuple(paths))],
        batch_size=BATCH,
        length=1 << 30,
        seed=seed,
        tokenize=open_clip.get_tokenizer("ViT-B-32"),
        augment=Augment((SIZE, SIZE)),
        preprocess=Preprocess((SIZE, SIZE)),
        workers=WORKERS,
        ranks=(0, 1),
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    for batch in data.train_dataloader():
        yield batch["image"].float().sub_(mean).div_(std), batch["text"]  # as the image tower does in training


def open_clip_batches(paths: list[str], seed: int) -> Iterator[Pair]:
    """The same of open_clip's pipeline: its stages, buffers and order."""
    transform, tokenize = image_transform(SIZE, is_train=True), open_clip.get_tokenizer("ViT-B-32")
    dataset = wds.DataPipeline(
        wds.ResampledShards(paths, seed=seed, deterministic=True),
        wds.tarfile_to_samples(),
        wds.shuffle(5000, initial=1000),
        wds.select(lambda sample: "txt" in sample and "jpg" in sample),
        wds.decode("pilrgb"),
        wds.rename(image="jpg", text="txt"),
        wds.map_dict(image=transform, text=lambda text: tokenize(text)[0]),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    loader = wds.WebLoader(
        dataset,
        batch_size=None,
        shuffle=False,
        num_workers=WORKERS,
        persistent_workers=True,
        worker_init_fn=_one_thread,
    )
    yield from loader


def rate(batches: Iterator[Pair], count: int) -> float:
    """Samples a second of so many batches, after the first ones."""
    for _ in islice(batches, WARM_UP):
        pass
    started, seen = time.perf_counter(), 0
    for images, tokens in islice(batches, count):
        assert images.shape == (BATCH, 3, SIZE, SIZE)
        assert tokens.shape == (BATCH, 77)
        seen += len(images)
    return seen / (time.perf_counter() - started)


def main() -> int:
    """Compare medians of 7 stretches of 40 batches (``--quick``: 3 of 24), each by fresh workers."""
    repetitions, count = (3, 24) if quick(__doc__ or "") else (7, 40)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), photographs(SHARD), SHARDS, SHARD)
        pairs = [
            (rate(open_clip_batches(paths, seed), count), rate(clipkit_batches(paths, seed), count))
            for seed in range(repetitions)
        ]
    peer, own = (figure([pair[i] for pair in pairs]) for i in (0, 1))
    ratio = figure([ours / theirs for theirs, ours in pairs], value=own["value"] / peer["value"])
    figures = {"rate_ratio": ratio, "clipkit_per_second": own, "open_clip_per_second": peer}
    name = f"open_clip {open_clip.__version__}'s pipeline rebuilt on webdataset {wds.__version__}"
    return finish("loader", peer=name, figures=figures)


if __name__ == "__main__":
    sys.exit(main())
