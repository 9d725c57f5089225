"""Folders of embeddings: what lies in them, how they go on, what they refuse."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clipkit.embedding import embed as module
from clipkit.embedding.embed import embed
from clipkit.embedding.store import Store
from clipkit.encoder import Encoder

from .. import conftest

JOBS = Path(__file__).with_name("jobs.py")


def rows(folder: Path, kind: str) -> Any:
    return np.concatenate([np.load(path) for path in sorted((folder / kind).glob("*.npy"))])


def test_rows_are_the_encoders(encoder: Encoder, tars: Path, tmp_path: Path) -> None:
    made = embed(encoder, tars, tmp_path / "out", dtype="fp32", batch_size=4, workers=1)
    assert (made["images"], made["captions"], made["unreadable"], made["parts"]) == (20, 20, 1, 3)
    assert made["complete"]
    assert made["one_caption_each"]
    table = pq.read_table(tmp_path / "out" / "metadata")
    numbers = [int(key) for key in table["key"].to_pylist()]
    assert numbers == [*range(9), *range(101, 105), *range(200, 207)]
    pictures = [square(number) for number in numbers]
    assert np.allclose(rows(tmp_path / "out", "img_emb"), encoder.encode_image(pictures).numpy(), atol=1e-6)
    texts = [f"square number {number}" for number in numbers]
    assert table["caption"].to_pylist() == texts
    assert np.allclose(rows(tmp_path / "out", "text_emb"), encoder.encode_text(texts).numpy(), atol=1e-6)
    assert np.allclose(np.stack(table["vector"].to_pylist()), rows(tmp_path / "out", "img_emb"))
    assert table.schema.field("vector").type.list_size == made["dim"]
    assert all(thumbnail.startswith(b"\xff\xd8\xff") for thumbnail in table["thumbnail"].to_pylist())
    record = json.loads((tmp_path / "out" / "parts" / "00001.json").read_text())
    assert record["unreadable"][0].startswith("00100: ")


def test_one_tensor_is_as_good_as_its_pictures(encoder: Encoder) -> None:
    for side in (encoder.preprocess.size[0], 48):  # as the tower takes them, and to be resized
        stacked = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8)
        assert torch.equal(encoder.encode_image(stacked), encoder.encode_image(list(stacked)))
        assert torch.equal(encoder.encode_image_features(stacked), encoder.encode_image_features(list(stacked)))
        assert encoder.encode_image_features(stacked[:0]).shape[0] == 0


def test_a_batch_without_a_picture_leaves_no_row(encoder: Encoder, tars: Path, tmp_path: Path) -> None:
    made = embed(encoder, tars / "1.tar", tmp_path / "out", batch_size=1, workers=1)
    assert (made["images"], made["unreadable"]) == (4, 1)
    assert rows(tmp_path / "out", "img_emb").shape == (4, made["dim"])


def square(number: int) -> Image.Image:
    colour = np.random.default_rng(number).integers(0, 256, 3)
    return Image.fromarray(np.full((16, 16, 3), colour, dtype=np.uint8))


def test_a_sample_without_a_picture_is_counted_and_captions_are_read_from_json(
    encoder: Encoder, tmp_path: Path
) -> None:
    conftest.write_shard(tmp_path / "whole.tar", 1)
    with tarfile.open(tmp_path / "whole.tar") as tar:
        picture = tar.extractfile("00000.png").read()  # type: ignore[union-attr]
    texts = {"captions": ["a", "b"]}, {"caption": "c"}, {"caption": None}, {"url": "d"}, ["e"]
    members = [("0.txt", b"alone"), ("9.json", b"{"), ("9.png", picture)]
    for number, text in enumerate(texts, start=1):
        members += [(f"{number}.json", json.dumps(text).encode()), (f"{number}.png", picture)]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    made = embed(encoder, tmp_path / "0.tar", tmp_path / "out")
    assert (made["images"], made["captions"], made["unreadable"]) == (6, 3, 1)
    table = pq.read_table(tmp_path / "out" / "metadata")
    assert table["captions"].to_pylist() == [[], ["a", "b"], ["c"], [], [], []]
    record = json.loads((tmp_path / "out" / "parts" / "00000.json").read_text())
    assert record["unreadable"][0].startswith("0: no image; the fields ")


def test_where_nothing_can_be_read_nothing_is_complete(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no picture")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"photos: none of the pictures can be read \(a.jpg: "):
            embed(encoder, tmp_path / "photos", tmp_path / "out")
        assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


def test_what_failed_before_its_first_part_blocks_nothing(encoder: Encoder, tars: Path, tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes((tars / "0.tar").read_bytes()[:3000])
    with pytest.raises(ValueError, match="cut short"):
        embed(encoder, shard, tmp_path / "out")
    shutil.copy(tars / "0.tar", shard)
    assert embed(encoder, shard, tmp_path / "out")["images"] == 9


def test_it_goes_on_where_it_stopped(encoder: Encoder, tars: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    embed(encoder, tars, whole)
    plain, done = module._embed_part, []

    def twice(encoder: Encoder, part: Any, *rest: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part.name)
        return plain(encoder, part, *rest)

    monkeypatch.setattr(module, "_embed_part", twice)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, tars, out)
    with pytest.raises(ValueError, match=r"was not finished; run the same `clipkit embed` again"):
        Store(out)
    (out / "img_emb" / "img_emb_00000.npy").write_bytes(b"cut short")  # done, and damaged since
    done.clear()
    embed(encoder, tars, out)
    assert done == ["0.tar", "2.tar"]
    for kind in ("img_emb", "text_emb"):
        assert np.array_equal(rows(out, kind), rows(whole, kind))
    done.clear()
    embed(encoder, tars, out)
    assert done == []
    for name in (
        "img_emb/img_emb_00001.npy",
        "metadata/metadata_00002.parquet",
    ):  # of the same size, and another inside
        place = out / name
        before = place.read_bytes()
        place.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        done.clear()
        embed(encoder, tars, out)
        assert (done, place.read_bytes()) == ([f"{int(place.stem[-5:])}.tar"], before)


def test_two_ranks_write_what_one_does(encoder: Encoder, tars: Path, tmp_path: Path, two_ranks: Any) -> None:
    torch.save({"image": encoder.image.state_dict(), "text": encoder.text.state_dict()}, tmp_path / "weights.pt")
    found = two_ranks.run(JOBS, "embed_all", str(tars), str(tmp_path / "two"), str(tmp_path / "weights.pt"))
    alone = embed(encoder, tars, tmp_path / "one", batch_size=4)
    assert found == [alone, alone]
    for kind in ("img_emb", "text_emb"):
        assert np.array_equal(rows(tmp_path / "two", kind), rows(tmp_path / "one", kind))


def test_folders_and_tables(encoder: Encoder, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("clipkit.embedding.parts.FILES", 2)
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, captions in (("a.png", "one\ntwo"), ("b.png", None), ("sub/c.png", "three")):
        square(len(name)).save(folder / name)
        if captions:
            (folder / name).with_suffix(".txt").write_text(captions)
    made = embed(encoder, folder, tmp_path / "out", thumbnail=0)
    assert (made["images"], made["captions"], made["parts"], made["one_caption_each"]) == (3, 3, 2, False)
    table = pq.read_table(tmp_path / "out" / "metadata")
    assert table["key"].to_pylist() == ["a.png", "b.png", "sub/c.png"]
    assert table["captions"].to_pylist() == [["one", "two"], [], ["three"]]
    assert table["thumbnail"].null_count == 3
    csv = tmp_path / "t.csv"
    csv.write_text("filepath,caption\nphotos/a.png,red\nphotos/sub/c.png,blue\n")
    assert embed(encoder, csv, tmp_path / "csv")["captions"] == 2


def test_other_captions_are_other_data(encoder: Encoder, tmp_path: Path) -> None:
    folder, csv = tmp_path / "photos", tmp_path / "t.csv"
    folder.mkdir()
    square(1).save(folder / "a.png")
    for data, words, change in (
        (folder, folder / "a.txt", "red"),
        (csv, csv, "filepath,caption\nphotos/a.png,red\n"),
    ):
        words.write_text(change)
        embed(encoder, data, tmp_path / f"{data.name}-out")
        words.write_text(change.replace("red", "new"))
        with pytest.raises(ValueError, match=r"holds embeddings of tiny with other data"):
            embed(encoder, data, tmp_path / f"{data.name}-out")
        embed(encoder, data, tmp_path / f"{data.name}-out", force=True)
        assert pq.read_table(tmp_path / f"{data.name}-out" / "texts")["caption"].to_pylist() == ["new"]


def test_a_name_that_is_no_text_is_embedded(encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    square(1).save(folder / "a.png")
    os.rename(folder / "a.png", os.fsencode(folder) + b"/a\xff.png")
    assert embed(encoder, folder, tmp_path / "out")["images"] == 1
    assert pq.read_table(tmp_path / "out" / "metadata")["key"].to_pylist() == ["a\ufffd.png"]


def test_the_command_shares_parts_among_ranks(tars: Path, tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "configs" / "demo_model.json"
    command = [sys.executable, "-m", "clipkit", "embed", str(model), str(tars), "--device", "cpu", "--out"]
    for name, more in (("two", ["--devices", "2"]), ("one", [])):
        done = subprocess.run([*command, str(tmp_path / name), *more], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("20 pictures and 20 captions") == 1, done.stdout
    for kind in ("img_emb", "text_emb"):
        assert np.allclose(rows(tmp_path / "two", kind), rows(tmp_path / "one", kind), atol=1e-3)


def test_what_is_refused(encoder: Encoder, tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(encoder, tars, out)
    with pytest.raises(
        ValueError, match=r"holds embeddings of tiny with other dtype; name another folder, or .*--force"
    ):
        embed(encoder, tars, out, dtype="fp32")
    assert embed(encoder, tars, out, dtype="fp32", force=True)["dtype"] == "float32"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for force in (False, True):
        with pytest.raises(ValueError, match=r"mine is not empty and holds no manifest.json"):
            embed(encoder, tars, tmp_path / "mine", force=force)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    for data, message in (
        (tmp_path / "none", "no such file or folder"),
        (f"{tars}/{{0..3}}.tar", "3.tar: no such shard"),
        (tmp_path / "mine", "neither shards nor pictures"),
        (tmp_path / "mine" / "letter.txt", r"neither a \.tar, a \.csv"),
    ):
        with pytest.raises(ValueError, match=message):
            embed(encoder, data, tmp_path / "new")
    with pytest.raises(ValueError, match=r"dtype 'int4' is not known"):
        embed(encoder, tars, tmp_path / "new", dtype="int4")


def test_other_data_are_not_mixed_in(encoder: Encoder, tars: Path, tmp_path: Path) -> None:
    mine = tmp_path / "tars"
    shutil.copytree(tars, mine)
    embed(encoder, mine, tmp_path / "out")
    os.utime(mine / "2.tar", (1, 1))
    with pytest.raises(ValueError, match="with other data"):
        embed(encoder, mine, tmp_path / "out")


def test_broken_weights_leave_no_embeddings(tars: Path, tmp_path: Path) -> None:
    broken = Encoder.from_pair(conftest_pair(), model="tiny", pretrained=None)
    with torch.no_grad():
        next(broken.image.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"0.tar: 9 of 9 embeddings hold NaN or infinity"):
        embed(broken, tars, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.npy"))


def conftest_pair() -> Any:
    from clipkit.towers.open_clip import pair_from_config

    return pair_from_config(conftest.TINY_MODEL, preprocess={})
