import gzip
import io
import json
import os
import tarfile
from collections import Counter

import pytest
import torch
from webdataset.tariterators import url_opener

from clipkit.building import build_data, build_model
from clipkit.callbacks.account import describe
from clipkit.config import load_config
from clipkit.data.augment import Augment
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.images import BadSample
from clipkit.data.source import Source
from clipkit.data.stream import StreamDataModule, data_module, read_stream
from clipkit.data.transforms import Preprocess

from .conftest import pair, tokenize, write_tar

WANTED = frozenset({"jpg", "txt"})


def packed(path):
    """A shard gzipped in place of the plain one."""
    with open(path, "rb") as file:
        data = file.read()
    os.remove(path)
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(data)
    return f"{path}.gz"


def module(shards, *, batch_size=8, length=64, seed=0, workers=0, ranks=(0, 1), name="gz", kind=None, **source):
    sources = [Source(name, tuple(shards), stream=True, **source)]
    return (kind or data_module(sources, []))(
        train=sources,
        batch_size=batch_size,
        length=length,
        seed=seed,
        tokenize=tokenize,
        augment=Augment((16, 16)),
        preprocess=Preprocess((16, 16)),
        workers=workers,
        ranks=ranks,
    )


def batches(data):
    found = []
    for batch in data.train_dataloader():
        data.advance(batch)
        found.append(batch)
    return found


def keys(found):
    return [key for batch in found for key in batch["key"]]


def test_gzipped_shards_give_the_batches_that_indexed_ones_would_hold(make_shards):
    plain = make_shards([12, 12, 8])
    held = module(plain, kind=ShardDataModule, length=32)
    indexed = {key: row for batch in batches(held) for key, row in zip(batch["key"], zip_rows(batch), strict=True)}
    streamed = module([packed(path) for path in plain], length=32)
    found = batches(streamed)
    assert isinstance(streamed, StreamDataModule)
    assert set(found[0]) == {"id", "key", "position", "content", "bad", "noted", "image", "text"}
    assert len(keys(found)) == 32
    assert len(indexed) == len(set(keys(found))) == 32  # one reader: an epoch is every sample once
    for batch in found:
        for key, row in zip(batch["key"], zip_rows(batch), strict=True):
            assert row == indexed[key]
    ids = torch.cat([batch["id"] for batch in found])
    assert len(set(ids.tolist())) == 32


def zip_rows(batch):
    """What a batch says of each sample, but for the augmentation, which goes by the position."""
    columns = (batch["text"], batch["content"]["image"], batch["content"]["text"])
    return [tuple(map(str, row)) for row in zip(*(column.tolist() for column in columns), strict=True)]


def test_the_same_run_reads_the_same_and_another_seed_another_order(make_shards):
    shards = [packed(path) for path in make_shards([20, 20, 20, 20])]
    first = keys(batches(module(shards, length=160)))
    assert first == keys(batches(module(shards, length=160)))
    assert first != keys(batches(module(shards, length=160, seed=1)))
    assert Counter(first) == Counter(dict.fromkeys(first, 2))
    assert first[:80] != first[80:]
    assert first[:80] != sorted(first[:80])


def test_ranks_and_workers_read_apart_and_have_equally_many_batches(make_shards):
    shards = [packed(path) for path in make_shards([9, 30, 12, 10])]
    ranks = [batches(module(shards, workers=2, ranks=(rank, 2), length=96)) for rank in (0, 1)]
    assert [batch["position"] for batch in ranks[0]] == list(range(0, 96, 8)) == [b["position"] for b in ranks[1]]
    assert all(len(batch["key"]) == 4 for found in ranks for batch in found)
    first = [key for found in ranks for key in keys(found[:4])]  # no reader is through its first tar here
    assert len(set(first)) == len(first) == 32
    again = batches(module(shards, workers=2, ranks=(1, 2), length=96))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(ranks[1], again, strict=True))


def test_fewer_shards_than_readers_are_read_by_all_and_it_is_said(make_shards, caplog):
    shards = [packed(path) for path in make_shards([20])]
    ranks = [keys(batches(module(shards, ranks=(rank, 2), length=40))) for rank in (0, 1)]
    assert "1 tars for 2 readers" in caplog.text
    assert ranks[0] != ranks[1]
    assert set(ranks[0]) == set(ranks[1])


def test_a_resumed_run_goes_on_at_another_place_with_the_same_number_of_batches(make_shards):
    shards = [packed(path) for path in make_shards([40, 40])]
    data = module(shards, length=64)
    loader = iter(data.train_dataloader())
    before = [next(loader) for _ in range(3)]
    for batch in before:
        data.advance(batch)
    state = data.state_dict()
    rest = []
    for _ in range(2):
        resumed = module(shards, length=64)
        resumed.load_state_dict(state)
        rest.append(batches(resumed))
    assert [batch["position"] for batch in rest[0]] == list(range(24, 64, 8))
    assert keys(rest[0]) == keys(rest[1]) != keys(batches(module(shards, length=64)))[24:]
    assert len(resumed.train_dataloader()) == 8
    assert "not exact" in resumed.resumed
    with pytest.raises(ValueError, match=r"data\.seed"):
        module(shards, seed=1).load_state_dict(state)


def test_bad_samples_are_passed_over_and_counted_by_cause(make_shards):
    def spoil(number, members):
        bad = {3: {"jpg": b"<html>"}, 5: {"txt": b" "}, 6: {"jpg": b""}}
        return members | bad.get(number, {})

    shards = [packed(path) for path in make_shards([10, 10], change=spoil)]
    data = module(shards, batch_size=2, length=34)
    found = batches(data)
    assert not {"00003", "00005", "00006"} & set(keys(found))
    (account,) = data.report()["gz"]
    assert (account.trained, account.seen) == (34, 34 + sum(account.bad.values()))
    assert account.bad["format"] >= 1
    records = [record for batch in found for record in batch["bad"]]
    assert {(record.key, record.cause) for record in records} >= {("00003", "format"), ("00005", "no_caption")}
    assert all(record.shard.endswith(".tar.gz") for record in records)


def cut(path, share):
    with open(path, "r+b") as file:
        file.truncate(int(os.path.getsize(path) * share))
    return str(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tar_that_is_cut_anywhere_is_counted_not_taken_for_a_short_one(make_shards, tmp_path, zipped):
    (plain,) = make_shards([6])
    with open(plain, "rb") as file:
        whole = file.read()
    whole = whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 512 + 1024]
    for blocks in range(len(whole) // 512 - 1):
        path = tmp_path / "cut.tar"
        path.write_bytes(gzip.compress(whole[: blocks * 512], 1) if zipped else whole[: blocks * 512])
        assert [cause(sample) for sample in read_stream(str(path), WANTED, 1 << 20)][-1] == "shard", blocks
    path.write_bytes(gzip.compress(whole))
    cut(path, 0.7)
    assert [cause(sample) for sample in read_stream(str(path), WANTED, 1 << 20)][-1] == "shard"
    path.write_bytes(whole)
    assert [cause(sample) for sample in read_stream(str(path), WANTED, 1 << 20)] == [""] * 6


def cause(sample):
    bad = [value.cause for value in sample.members.values() if isinstance(value, BadSample)]
    return bad[0] if bad else ""


def test_a_broken_tar_costs_itself_alone(make_shards, tmp_path):
    shards = [packed(path) for path in make_shards([8, 8])]
    data = module([*shards, cut(shards[1], 0.5)], length=48)
    assert len(keys(batches(data))) == 48
    assert data.report()["gz"][0].bad["shard"] >= 1


def test_members_that_are_not_asked_for_and_too_large_ones_are_not_read(tmp_path):
    files = [("a/0.x.jpg", b"1"), ("a/1.JPG", b"picture"), ("a/1.txt", b"text"), ("a/1.json", b"{}")]
    path = write_tar(tmp_path / "a.tar", [*files, ("a/2.jpg", b"x" * 50), ("a/2.txt", b"y")])
    first, second, third = read_stream(str(path), WANTED, 20)
    assert first.members == {}
    assert second == (str(path), "a/1", {"jpg": b"picture", "txt": b"text"})
    assert cause(third) == "too_large"
    assert third.members["txt"] == b"y"


def test_a_bomb_is_not_unpacked(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("0.jpg", pair(0)["jpg"]), ("0.txt", b"one 1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("1.jpg")
        info.size = 1 << 40  # it claims a terabyte and ends
        tar.addfile(info)
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    found = list(read_stream(str(tmp_path / "bomb.tar.gz"), WANTED, 1 << 20))
    assert [cause(sample) for sample in found] == ["", "shard"]


def test_no_opener_of_webdataset_ever_runs(make_shards, tmp_path, monkeypatch):
    shards = [packed(path) for path in make_shards([8])]
    marker = tmp_path / "ran"
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {marker} && cat {tmp_path}")
    batches(module(shards, length=8))
    assert not marker.exists()
    for opened in url_opener([{"url": shards[0]}]):  # the control: webdataset's own way does run it
        opened["stream"].read()
    assert marker.exists()


def test_sources_are_mixed_by_weight(make_shards):
    first, second = make_shards([30], "a"), make_shards([30], "b", lambda n, m: m | {"txt": b"other 7"})
    sources = [
        Source("a", (packed(first[0]),), weight=3, stream=True),
        Source("b", (packed(second[0]),), weight=1, stream=True),
    ]
    data = StreamDataModule(
        train=sources,
        batch_size=64,
        length=1024,
        seed=0,
        tokenize=tokenize,
        augment=Augment((16, 16)),
        preprocess=Preprocess((16, 16)),
        ranks=(0, 1),
    )
    found = batches(data)
    assert sum(int((batch["text"][:, 0] == 7).sum()) for batch in found) >= 256
    assert {name: lines[0].trained for name, lines in data.report().items()} == {"a": 768, "b": 256}


def test_what_cannot_be_streamed_is_refused(make_shards, tmp_path):
    (shard,) = make_shards([4])
    stream, plain = Source("s", (shard,), stream=True), Source("p", (shard,))
    with pytest.raises(ValueError, match="s stream and p do not"):
        data_module([stream, plain], [])
    with pytest.raises(ValueError, match="validation"):
        data_module([stream], [stream])
    assert data_module([plain], [plain]) is ShardDataModule
    remote = Source("s", ("https://me:pw@host/a.tar.gz",), stream=True)
    with pytest.raises(ValueError, match=r"https://\*\*\*@host/a.tar.gz is remote, .* copy the tars here"):
        data_module([remote], [])
    (tmp_path / "junk.tar").write_bytes(b"junk" * 300)
    with pytest.raises(ValueError, match=r"\(shard: cannot be read on"):
        module([str(tmp_path / "junk.tar")])
    with pytest.raises(ValueError, match=r"none of the first 100 streamed samples can be used \(no_image"):
        module([shard], fields={"image": ("png",), "text": ("txt",)})


def test_a_configuration_asks_for_it(make_shards, tiny_model, tmp_path):
    (shard,) = (packed(path) for path in make_shards([8], change=lambda n, m: m | {"txt": b"a dog"}))
    said = {
        "model": str(tiny_model),
        "data": {"train": {"gz": {"shards": shard, "stream": True}}, "batch_size": 4, "workers": 0},
        "loss": "infonce",
        "trainer": {"length": "3 steps"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(said))
    config = load_config(tmp_path / "run.yaml")
    pair_ = build_model(config)
    data = build_data(config, pair_, folder=tmp_path)
    assert isinstance(data, StreamDataModule)
    assert data.epoch_samples is None
    assert len(batches(data)) == 3
    assert describe(data.report()["gz"]) == "streamed 12 trained + 0 bad"
    config = load_config(tmp_path / "run.yaml", ["trainer.length=2 epochs"])
    with pytest.raises(ValueError, match=r"trainer\.length=2 epochs: streamed sources have no epochs"):
        build_data(config, pair_, folder=tmp_path)
