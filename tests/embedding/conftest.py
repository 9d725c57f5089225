"""A small encoder, and pictures to embed."""

from pathlib import Path

import pytest
import torch

from clipkit.encoder import Encoder
from clipkit.towers.open_clip import pair_from_config

from ..conftest import TINY_MODEL, write_shard


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder.from_pair(pair_from_config(TINY_MODEL, preprocess={}), model="tiny", pretrained=None)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 9, 5 and 7 samples; the second holds a picture that cannot be read."""
    folder = tmp_path_factory.mktemp("tars")
    for number, count in enumerate((9, 5, 7)):
        write_shard(folder / f"{number}.tar", count, first=100 * number)
    damaged = folder / "1.tar"
    data = damaged.read_bytes()
    at = data.index(b"\x89PNG") + 20
    damaged.write_bytes(data[:at] + bytes(30) + data[at + 30 :])
    return folder
