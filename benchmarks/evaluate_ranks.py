"""Does a set give the same figures on two ranks as on one? The embedded sets, whose last shards are uneven, with one image left out.

Two real gloo ranks evaluate zero-shot classification and retrieval together; every figure, interval and outcome of each rank is held against one
process's. ``differences`` counts those that are not equal to the last bit. The peer is one process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from common import figure, finish, quick

from clipkit.data.embedded import materialise
from clipkit.encoder import Encoder
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.engine import with_intervals
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot
from clipkit.towers.open_clip import pair_from_config

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
BATCH = 13  # divides none of the sets


def figures(cache: str, names: list[str]) -> dict[str, Any]:
    """All that is found about a model with fixed random weights."""
    torch.manual_seed(0)
    encoder = Encoder.from_pair(pair_from_config(CONFIG), model="tiny", pretrained=None)
    encodings, sets = Encodings(encoder, batch_size=BATCH), materialise(Path(cache))
    found: dict[str, Any] = {}
    for name in names:
        evaluator = Retrieval(sets[name]) if name == "retrieval" else ZeroShot(sets[name])
        data: Any = evaluator.data
        odd = len(data) - 1 + len(data) % 2
        labels = {} if name == "retrieval" else {"labels": data.labels[:odd]}
        pairs = {"captions": data.captions[:odd]} if name == "retrieval" else {}
        evaluator.data = replace(data, images=data.images[:odd], **labels, **pairs)
        findings = evaluator.run(encodings)
        found |= {f"{name}/{key}": value for key, value in with_intervals(findings, seed=0).items()}
        found |= {f"{name}/{key}/outcomes": value.int().tolist() for key, value in findings.outcomes.items()}
    return found


def rank(number: int, world: int, cache: str, names: list[str], out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=number, world_size=world)
    Path(out, f"{number}.json").write_text(json.dumps(figures(cache, names)))
    torch.distributed.destroy_process_group()


def main() -> int:
    """Two ranks (without ``--quick`` also three, whose shares are uneven in another way)."""
    short = quick(__doc__ or "")
    torch.set_num_threads(1)
    names = ["unseen", "retrieval"] if short else ["style_transfer", "unseen", "subgroup", "retrieval"]
    counts = []
    with tempfile.TemporaryDirectory() as cache:
        alone = json.loads(json.dumps(figures(cache, names)))
        for world in (2,) if short else (2, 3):
            with tempfile.TemporaryDirectory() as out:
                mp.start_processes(rank, args=(world, cache, names, out), nprocs=world, start_method="spawn")
                several = [json.loads(Path(out, f"{number}.json").read_text()) for number in range(world)]
            counts += [sum(found.get(key) != value for key, value in alone.items()) for found in several]
            print(f"{world} ranks: {len(alone)} figures, intervals and outcomes, {sum(counts[-world:])} differ")
    differences = figure([float(count) for count in counts], value=float(sum(counts)))
    return finish("evaluate_ranks", peer="clipkit on one process", figures={"differences": differences})


if __name__ == "__main__":
    sys.exit(main())
