"""Peak memory of a step of 1,024 pairs: in micro-batches of 64, against the whole batch in one go.

A small vision transformer and a text transformer, forward, exact InfoNCE and backward, each in a process of its own. Memory is what RssAnon and
RssShmem grow by over the same process with model, batch and gradients in place, read every millisecond.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from common import figure, finish, peak_growth, quick

from clipkit.losses.infonce import InfoNCE
from clipkit.towers.open_clip import pair_from_config
from clipkit.towers.scale import LogitScale
from clipkit.towers.towers import Towers

PAIRS, MICRO = 1024, 64
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "patch_size": 8, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 1024, "width": 128, "heads": 2, "layers": 2},
}


def peak(micro_batch: int | None) -> float:
    """Megabytes of one step."""
    torch.manual_seed(0)
    pair = pair_from_config(MODEL)
    towers = Towers({"image": pair.image, "text": pair.text}, micro_batch=micro_batch)
    loss = InfoNCE(LogitScale().forward)
    numbers = torch.arange(PAIRS)
    tokens = torch.randint(1, 1022, (PAIRS, 32))
    tokens[:, -1] = 1023
    batch = {"image": torch.randint(0, 256, (PAIRS, 3, 64, 64), dtype=torch.uint8), "text": tokens, "id": numbers}
    batch |= {"content": {"image": numbers, "text": numbers}, "key": [], "position": 0}
    for parameter in towers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return peak_growth(lambda: loss(towers(batch), batch).backward())


def child(micro_batch: int | None) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", str(micro_batch or 0)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    """Three processes of each in turn (``--quick``: one)."""
    pairs = [(child(None), child(MICRO)) for _ in range(1 if quick(__doc__ or "") else 3)]
    figures = {
        "memory_ratio": figure([whole / parts for whole, parts in pairs]),
        "whole_mb": figure([whole for whole, _ in pairs]),
        "micro_batch_mb": figure([parts for _, parts in pairs]),
    }
    return finish("micro_batch", peer="the same batch in one go", figures=figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        torch.set_num_threads(2)
        print(peak(int(sys.argv[2]) or None))
        sys.exit(0)
    sys.exit(main())
