"""What ranks do in the tests."""

from pathlib import Path

import torch

from clipkit.embedding.embed import embed
from clipkit.encoder import Encoder
from clipkit.towers.open_clip import pair_from_config
from tests.conftest import TINY_MODEL


def embed_all(data: str, out: str, weights: str) -> dict[str, object]:
    encoder = Encoder.from_pair(pair_from_config(TINY_MODEL, preprocess={}), model="tiny", pretrained=None)
    state = torch.load(weights, weights_only=True)
    encoder.image.load_state_dict(state["image"])
    encoder.text.load_state_dict(state["text"])
    return embed(encoder, data, Path(out), batch_size=4)
