"""Shards of real image files, made for the test that asks."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from .web import Web


def image_bytes(number, kind="JPEG", size=(24, 20)):
    rng = np.random.default_rng(number)
    base = np.full((size[1], size[0], 3), rng.integers(0, 256, 3), np.uint8)
    base[: size[1] // 2] = rng.integers(0, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(base).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, files, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(number):
    """The members of a good sample."""
    return {"jpg": image_bytes(number), "txt": f"caption {number}".encode()}


@pytest.fixture
def make_shards(tmp_path):
    """Write shards of so many samples each; ``change`` may alter or spoil a sample's members."""

    def make(counts, folder="shards", change=lambda number, members: members):
        (tmp_path / folder).mkdir()
        paths, number = [], 0
        for shard, count in enumerate(counts):
            files = []
            for _ in range(count):
                members = change(number, pair(number))
                files += [(f"{number:05d}.{extension}", data) for extension, data in members.items()]
                number += 1
            paths.append(str(write_tar(tmp_path / folder / f"{shard:05d}.tar", files)))
        return tuple(paths)

    return make


def tokenize(texts):
    """A stand-in tokenizer: the number in the caption."""
    return torch.tensor([[int(text.split()[-1]), len(text)] for text in texts])


@pytest.fixture
def web():
    """A loopback web server."""
    server = Web()
    yield server
    server.close()
