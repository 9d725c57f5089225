"""A small tower beside loader processes runs in one thread, and nothing else changes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.embedding.embed import embed
from clipkit.encoder import Encoder
from clipkit.evaluation import threads
from clipkit.evaluation.samples import ImageFile
from clipkit.evaluation.split import encode_images
from clipkit.evaluation.threads import beside_workers
from clipkit.towers.open_clip import pair_from_config

from ..conftest import TINY_MODEL


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small() -> Encoder:
    torch.manual_seed(0)
    return Encoder.from_pair(pair_from_config(TINY_MODEL, preprocess={}), model="tiny", pretrained=None)


def test_threads_inside_and_after(small, monkeypatch):
    def inside(workers: int) -> int:
        with beside_workers(small, workers):
            return torch.get_num_threads()

    assert (inside(workers=2), torch.get_num_threads()) == (1, 2)
    assert inside(workers=0) == 2  # nobody else wants the cores
    assert inside(workers=10**6) == 2  # they would decode faster than one thread embeds
    with pytest.raises(ZeroDivisionError), beside_workers(small, 2):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "DECODED", 1000)  # every tower is large now
    assert inside(workers=2) == 2


def test_what_counts_is_the_towers_work_for_one_picture(small):
    width, tokens, patch = 32, 5, 3 * 8 * 8
    weights = width * (3 * width + width + 2 * 4 * width)
    products = 2 * (4 * patch * width + tokens * weights + width * 16)
    assert (
        products <= threads._flops(small) <= products + 2 * 2 * tokens**2 * width
    )  # torch does not count every attention


def test_both_loops_use_it_and_give_the_rows_of_none(small, tmp_path: Path, monkeypatch):
    seen: list[int] = []
    plain = small.encode_image

    def watched(images, **how):
        seen.append(torch.get_num_threads())
        return plain(images, **how)

    monkeypatch.setattr(small, "encode_image", watched)
    for number in range(8):
        Image.new("RGB", (16, 16), (30 * number, 200, 90)).save(tmp_path / f"{number}.png")
    files = [ImageFile(tmp_path / f"{number}.png") for number in range(8)]
    rows = []
    for workers in (0, 1):
        embed(small, tmp_path, tmp_path / f"out{workers}", batch_size=4, workers=workers, dtype="fp32")
        assert seen[-2:] == [2 - workers] * 2
        rows.append(torch.from_numpy(np.load(tmp_path / f"out{workers}" / "img_emb" / "img_emb_00000.npy")))
        rows.append(encode_images(small, files, batch_size=4, workers=workers))
        assert seen[-2:] == [2 - workers] * 2
    assert all(torch.equal(found, rows[0]) for found in rows)
