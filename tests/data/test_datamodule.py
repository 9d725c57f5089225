"""The loader as a whole: the same samples whatever the workers, ranks and interruptions; nothing lost unsaid."""

import io
import json
import os
import signal
import time
from collections import deque

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.callbacks.account import describe
from clipkit.data.augment import Affine, Augment
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.source import Source
from clipkit.data.tar import ShardError
from clipkit.data.transforms import Preprocess

from .conftest import image_bytes, tokenize

AUGMENT = Augment((16, 16), scale=(0.5, 1.0), flip=0.5, affine=Affine(degrees=10))


def module(*sources, **changes):
    options = {
        "batch_size": 8,
        "length": 240,
        "seed": 1,
        "tokenize": tokenize,
        "augment": AUGMENT,
        "preprocess": Preprocess((16, 16)),
        "ranks": (0, 1),
    }
    return ShardDataModule(train=sources, **(options | changes))


def batches(data, count=None):
    found = []
    for batch in data.train_dataloader():
        data.advance(batch)
        found.append(batch)
        if len(found) == count:
            break
    data.teardown("fit")  # else the garbage collector ends the workers, which takes it seconds each
    return found


def same(left, right):
    assert left["key"] == right["key"]
    assert left["position"] == right["position"]
    for name in ("id", "image", "text"):
        assert torch.equal(left[name], right[name])
    for name in left["content"]:
        assert torch.equal(left["content"][name], right["content"][name])


@pytest.fixture
def source(make_shards):
    return Source("pairs", make_shards([30, 41]))


def test_a_batch(source):
    batch = batches(module(source), 1)[0]
    assert batch["image"].shape == (8, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert batch["text"][:, 0].tolist() == [int(key) for key in batch["key"]]  # a caption stays with its image
    assert batch["id"].tolist() == [int(key) for key in batch["key"]]
    assert batch["id"].dtype == batch["content"]["image"].dtype == batch["content"]["text"].dtype == torch.int64
    assert len(set(batch["content"]["image"].tolist())) == 8
    assert batch["bad"] == []
    assert batch["position"] == 0


def test_workers_do_not_matter(source):
    alone = batches(module(source))
    assert len(alone) == 30
    for workers in (1, 2):
        for left, right in zip(alone, batches(module(source, workers=workers)), strict=True):
            same(left, right)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_do_not_matter(source, world):
    alone = batches(module(source), 4)
    ranks = [batches(module(source, ranks=(rank, world)), 4) for rank in range(world)]
    for step, whole in enumerate(alone):
        for rank in range(world):
            part = ranks[rank][step]
            assert part["position"] == whole["position"]
            assert part["key"] == whole["key"][rank::world]
            assert torch.equal(part["image"], whole["image"][rank::world])


def test_the_batch_size_does_not_change_the_order(source):
    small = [key for batch in batches(module(source, batch_size=5)) for key in batch["key"]]
    large = [key for batch in batches(module(source, batch_size=24)) for key in batch["key"]]
    assert small == large


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_goes_on_with_the_same_batches(source, workers):
    whole = batches(module(source, workers=workers))
    for cut in (1, 7, 29):
        first = module(source, workers=workers)
        batches(first, cut)
        state = json.loads(json.dumps(first.state_dict()))
        second = module(source, workers=workers)
        second.load_state_dict(state)
        loader = second.train_dataloader()
        assert len(loader) == 30  # of the whole run: Lightning counts on from the steps that were done
        rest = batches(second)
        for left, right in zip(rest, whole[cut:], strict=True):
            same(left, right)
        assert second.position == 240


def test_killed_workers_cost_nothing_but_a_resume(source):
    whole = batches(module(source))
    data = module(source, workers=2)
    iterator = iter(data.train_dataloader())
    for _ in range(3):
        data.advance(next(iterator))
    for worker in iterator._workers:
        os.kill(worker.pid, signal.SIGTERM)  # a stop signal to the group is the parent's to handle
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGUSR1)
    time.sleep(0.2)
    batch = next(iterator)
    data.advance(batch)
    same(batch, whole[3])
    data.teardown("fit")
    state = state_after_a_massacre(source)
    assert state["position"] >= 8 * 4
    again = module(source, workers=2)
    again.load_state_dict(state)
    for left, right in zip(batches(again), whole[state["position"] // 8 :], strict=True):
        same(left, right)


def state_after_a_massacre(source):
    """What a process whose workers are all killed still knows; a process of its own, for torch raises wherever it hears of such a death."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            data = module(source, workers=2)
            iterator = iter(data.train_dataloader())
            for _ in range(4):
                data.advance(next(iterator))
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for worker in iterator._workers:
                os.kill(worker.pid, signal.SIGKILL)
            try:
                deque(map(data.advance, iterator), maxlen=0)
            except (RuntimeError, EOFError, OSError):  # the last two where one died while handing over a batch
                os.write(write, json.dumps(data.state_dict()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    assert text, "the loader did not notice that its workers were dead"
    return json.loads(text)


def spoil(number, members):
    if number == 3:
        members["jpg"] = b""
    if number == 10:
        members["jpg"] = image_bytes(10)[:-200]
    if number == 20:
        members["txt"] = b"\xff\xfe caption 20"
    if number == 21:
        members["txt"] = b"  \n"
    if number == 27:
        members["txt"] = b"NaN\n"
    if number == 33:
        del members["jpg"]
    return members


BAD = {3: "empty", 10: "truncated", 20: "not_utf8", 21: "no_caption", 27: "nan_caption", 33: "no_image"}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_substituted_and_counted(make_shards, workers):
    data = module(Source("pairs", make_shards([40, 31], change=spoil)), workers=workers, length=71 * 3, batch_size=10)
    found = batches(data)
    records = [record for batch in found for record in batch["bad"]]
    for record in records:
        assert BAD[int(record.key)] == record.cause
        assert record.source == "pairs"
        assert record.shard.endswith("00000.tar")
    for batch in found:
        assert len(set(batch["key"])) >= len(batch["key"]) - 1  # at most an epoch's edge repeats one
        assert not {int(key) for key in batch["key"]} & set(BAD)
        assert batch["text"][:, 0].tolist() == batch["id"].tolist() == [int(key) for key in batch["key"]]
        for record in batch["bad"]:
            assert batch["position"] <= record.position < batch["position"] + 10
    lines = data.report()["pairs"]
    assert [line.epoch for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert line.present == line.filtered + line.remainder + line.planned == 71
        assert line.seen == line.trained + sum(line.bad.values())
    for line in lines[:3]:
        assert line.seen == line.planned == 71
        assert line.bad == dict.fromkeys(BAD.values(), 1)
    assert sum(line.seen for line in lines) == data.position == 220


def test_counts_survive_a_resume(make_shards):
    shards = make_shards([40, 31], change=spoil)
    whole = module(Source("pairs", shards))
    batches(whole)
    first = module(Source("pairs", shards))
    batches(first, 11)
    second = module(Source("pairs", shards))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    batches(second)
    assert second.report() == whole.report()


def test_first_frames_of_animations_are_counted(make_shards):
    def moving(number, members):
        if number % 10 != 4:
            return members
        frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
        buffer = io.BytesIO()
        frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
        return {"webp": buffer.getvalue(), "txt": members["txt"]}

    source = Source("pairs", make_shards([30, 30], change=moving))
    whole = module(source, workers=2, length=180, batch_size=12)
    found = batches(whole)
    for batch in found:
        assert len(batch["noted"]) == sum(int(key) % 10 == 4 for key in batch["key"])
    assert [line.noted for line in whole.report()["pairs"]] == [{"animated": 6}] * 3
    first = module(source, length=180, batch_size=12)
    batches(first, 7)
    second = module(source, length=180, batch_size=12)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    batches(second)
    assert second.report() == whole.report()
    assert describe(whole.report()["pairs"]).endswith("180 trained + 0 bad; noted: animated 18")


def test_two_sources_mix_by_weight(make_shards):
    sources = [
        Source("a", make_shards([40], "a"), weight=3),
        Source("b", make_shards([200], "b", lambda number, members: members | {"txt": b"caption 999"}), weight=1),
    ]
    data = module(*sources, length=1024)
    texts = torch.cat([batch["text"][:, 0] for batch in batches(data)])
    assert int((texts == 999).sum()) == 256
    assert {name: sum(line.seen for line in lines) for name, lines in data.report().items()} == {"a": 768, "b": 256}


def test_captions_of_a_list_are_drawn_by_position(make_shards):
    def several(number, members):
        captions = [f"first {number}", f"second one {number}", "", 7]
        return {"jpg": members["jpg"], "json": json.dumps({"captions": captions, "one": f"only {number}"}).encode()}

    shards = make_shards([64], change=several)
    source = Source("several", shards, fields={"image": ("jpg",), "text": ("json.captions",)})
    lengths = torch.cat([batch["text"][:, 1] for batch in batches(module(source, length=640))])
    share = float((lengths > 9).float().mean())
    assert 0.4 < share < 0.6
    again = torch.cat([batch["text"][:, 1] for batch in batches(module(source, length=640, batch_size=32, workers=2))])
    assert torch.equal(lengths, again)
    single = Source("one", shards, fields={"image": ("jpg",), "text": ("txt", "json.one")})
    assert batches(module(single), 1)[0]["text"][:, 1].min() >= len("only 0")


def test_labels_are_hashed(make_shards):
    shards = make_shards([16], change=lambda number, members: members | {"cls": str(number % 2).encode() + b"\n"})
    fields = {"image": ("jpg",), "text": ("txt",), "label": ("cls",)}
    batch = batches(module(Source("labelled", shards, fields=fields)), 1)[0]
    parity = batch["id"] % 2
    assert batch["label"].dtype == torch.int64
    assert len(set(batch["label"].tolist())) == 2
    assert len(set(batch["label"][parity == 0].tolist())) == 1


def test_equal_content_has_equal_hashes(make_shards):
    shards = make_shards([16], change=lambda number, members: {"jpg": image_bytes(0), "txt": members["txt"]})
    batch = batches(module(Source("same", shards)), 1)[0]
    assert len(set(batch["content"]["image"].tolist())) == 1
    assert len(set(batch["content"]["text"].tolist())) == 8


def test_validation_is_whole_plain_and_the_same_each_time(source, make_shards):
    val = Source("val", make_shards([9, 12], "val", spoil))
    data = module(source, val=[val])
    for _ in range(2):
        found = list(data.val_batches())
        assert [batch["position"] for batch in found] == [0, 8]  # 5 of 21 fill no batch
        assert found[0]["key"][:3] == ["00000", "00001", "00002"]
        assert [record.key for batch in found for record in batch["bad"]] == ["00003", "00010"]
        assert not set(found[0]["key"]) & {"00003"}
    assert data.position == 0
    assert list(module(source).val_batches()) == []


def test_a_trace_holds_what_was_trained_and_is_cut_back(source, tmp_path):
    folder = tmp_path / "run"
    data = module(source, trace=folder)
    found = batches(data, 6)
    path = folder / "samples.rank0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"position": batch["position"], "keys": batch["key"]} for batch in found]
    path.write_text(path.read_text() + '{"position": 48, "ke')  # killed while it wrote
    resumed = module(source, trace=folder)
    resumed.load_state_dict({**data.state_dict(), "position": 32})
    batches(resumed)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["position"] for line in lines] == list(range(0, 240, 8))
    assert lines[:6] == [{"position": batch["position"], "keys": batch["key"]} for batch in found]


def test_a_state_of_other_data_is_refused_by_name(source, make_shards):
    state = module(source).state_dict()
    other = Source("pairs", make_shards([30, 42], "other"))
    for data, says in [
        (module(source, seed=2), "data.seed was 1 and is 2"),
        (module(source, batch_size=16), "data.batch_size was 8 and is 16"),
        (module(other), "data.sources.pairs.shards was"),
        (module(Source("pairs", source.shards, weight=2)), "data.sources.pairs.weight was 1.0 and is 2"),
        (module(Source("renamed", source.shards)), "data.sources.renamed is missing"),
    ]:
        with pytest.raises(ValueError, match=says):
            data.load_state_dict(state)


def test_a_copied_and_touched_shard_still_resumes(source, tmp_path):
    import shutil

    data = module(source)
    batches(data, 2)
    copied = []
    for path in source.shards:
        copied.append(str(tmp_path / os.path.basename(path)))
        shutil.copy(path, copied[-1])
    again = module(Source("pairs", tuple(copied)))
    again.load_state_dict(data.state_dict())
    assert again.position == 16


def test_a_shard_rewritten_under_the_run_is_noticed(source, make_shards):
    data = module(source)
    other = make_shards(
        [30, 41], "other", lambda number, members: {"jpg": members["jpg"], "txt": b"longer caption 7" * 99}
    )
    os.replace(other[0], source.shards[0])
    with pytest.raises(ShardError, match="not what was counted"):
        batches(data)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 72, "length": 999}, "plans 71 samples an epoch, and its share of a batch of 72 is 72"),
        ({"batch_size": 9, "ranks": (0, 2)}, "batch_size=9 is no multiple of the 2 ranks; take 10"),
    ],
)
def test_sizes_that_make_no_batch(source, changes, says):
    with pytest.raises(ValueError, match=says):
        module(source, **changes)


def test_a_source_without_usable_samples_says_what_it_holds(source):
    wrong = Source("wrong", source.shards, fields={"image": ("png",), "text": ("caption",)})
    with pytest.raises(ValueError, match=r"(?s)'wrong'.*71 x no_caption.*text: \[caption\].*are \.jpg, \.txt.*fields"):
        module(wrong)


def test_sources_of_different_fields_are_refused(source):
    other = Source("other", source.shards, fields={"image": ("jpg",)})
    with pytest.raises(ValueError, match=r"'pairs' gives \['image', 'text'\] and 'other' \['image'\]"):
        module(source, other)
    with pytest.raises(ValueError, match="name of its own"):
        module(source, source)


def test_length_may_depend_on_the_epoch(source):
    data = module(source, length=lambda batch_size, epoch_samples: 3 * epoch_samples + batch_size)
    assert data.length == 3 * 71 + 8
    assert data.epoch_samples == 71
    assert len(data.train_dataloader()) == -(-221 // 8)


def test_batches_out_of_turn_are_refused(source):
    data = module(source)
    first, second = batches(module(source), 2)
    with pytest.raises(ValueError, match="position 8"):
        data.advance(second)
    data.advance(first)
    assert data.position == np.int64(8)


def test_other_data_begin_anew_where_that_is_allowed_and_that_resumes_exactly(source, make_shards):
    first = module(source)
    batches(first, 5)
    state = json.loads(json.dumps(first.state_dict()))
    other = Source("pairs", make_shards([50], "other"), weight=2.0)
    with pytest.raises(ValueError, match="--allow-mismatch"):
        module(other, batch_size=4).load_state_dict(state)
    wanted = batches(module(other, batch_size=4), 55)  # 240 samples are 60 steps of 4, and 5 are done
    data = module(other, batch_size=4, allow_mismatch=True)
    data.load_state_dict(state)
    for left, right in zip(batches(data, 20), wanted[:20], strict=True):
        same(left, right)
    state = json.loads(json.dumps(data.state_dict()))
    assert state["earlier"] == [{"steps": 5, "samples": 40, "bad": {}}]
    for allow in (False, True):
        again = module(other, batch_size=4, allow_mismatch=allow)
        again.load_state_dict(state)
        assert len(again.train_dataloader()) == 60
        for left, right in zip(batches(again), wanted[20:], strict=True):
            same(left, right)
    third = module(source, allow_mismatch=True)  # and to a third plan
    third.load_state_dict(state)
    assert (third.position, third.earlier_steps) == (0, 25)
    assert len(batches(third)) == 5


def test_a_worker_that_waits_does_not_outlive_the_run(source, monkeypatch):
    from clipkit.data.reader import ShardReader

    data = module(source, workers=1)
    monkeypatch.setattr(ShardReader, "members", lambda *_: time.sleep(600))  # a server that says nothing
    loader = data.train_dataloader()
    iterator = iter(loader)
    (worker,) = iterator._workers
    assert worker.is_alive()
    data.teardown("fit")
    assert not worker.is_alive()
    assert loader._iterator is None
