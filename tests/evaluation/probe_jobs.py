"""What test_probes.py asks of each rank."""

from pathlib import Path

import torch

from clipkit.encoder import Encoder
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.knn import NearestNeighbours
from clipkit.evaluation.linear_probe import LinearProbe
from clipkit.towers.open_clip import pair_from_config

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def encoder(seed: int = 0) -> Encoder:
    """A small transformer with random weights."""
    torch.manual_seed(seed)
    return Encoder.from_pair(pair_from_config(CONFIG), model="tiny", pretrained=None)


def figures(root: str, cache: str | None = None):
    """Figures and details of both evaluators."""
    encodings = Encodings(encoder(), batch_size=50, feature_cache=None if cache is None else Path(cache))
    probe = LinearProbe(root, shots=[1, 4]).run(encodings)
    neighbours = NearestNeighbours(root, k=[1, 20]).run(encodings)
    return probe.figures, probe.details, neighbours.figures
