"""Copies in a folder and in memory, over backends that fail in the middle: never a manifest without its files."""

import functools
import json
import threading
import uuid
from pathlib import Path

import fsspec
import pytest
import torch

from clipkit import checkpoint_copies
from clipkit.callbacks.checkpoints import kept
from clipkit.checkpoint import CheckpointError, verify, write_checkpoint
from clipkit.checkpoint_copies import Copies, place_of, reason
from clipkit.config.checkpoint import check_copy_url

FILES = ["manifest.json", "model.safetensors", "state.json", "state.pt"]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1\n")
    return folder


@pytest.fixture(params=["file", "memory"])
def place(request, tmp_path):
    return f"file://{tmp_path}/copies" if request.param == "file" else f"memory://{uuid.uuid4().hex}/copies"


def write(run, step):
    folder = run / "checkpoints" / str(step)
    write_checkpoint(folder, model={"w": torch.full((50,), float(step))}, state={"s": step}, info={"step": step})
    return folder


def same(stored):
    return [] if stored.read_text() == "seed: 1\n" else ["seed: 2 -> 1"]


def chosen(last=2, best=0, scores=None, milestones=()):
    return functools.partial(kept, scores=scores or {}, milestones=milestones, last=last, best=best)


def listed(place):
    files, root = fsspec.core.url_to_fs(place)
    files.invalidate_cache()
    return sorted(path.removeprefix(root).strip("/") for path in files.find(root)) if files.exists(root) else []


def test_a_copy_is_the_checkpoint_and_comes_back(run, place, tmp_path):
    copies = Copies(place, same)
    copies.follow(write(run, 10), chosen())
    assert listed(place) == sorted(["config.yaml", *(f"10/{name}" for name in FILES)])
    found, passed_over = Copies(place).newest(tmp_path / "other" / "checkpoints")
    assert (found, passed_over) == (tmp_path / "other" / "checkpoints" / "10", [])
    for path in found.iterdir():
        assert path.read_bytes() == (run / "checkpoints" / "10" / path.name).read_bytes()
    assert json.loads((found.parent / "fetched.json").read_text()) == {"from": place}
    assert sorted(path.name for path in found.parent.iterdir()) == ["10", "fetched.json"]


def test_older_copies_go_by_the_rule_of_the_run_and_their_manifests_first(run, place, monkeypatch):
    copies = Copies(place, same)
    for step in (10, 20, 30, 40, 50):
        copies.follow(write(run, step), chosen(milestones={20}, best=1, scores={"10": 0.9, "30": 0.1}))
    assert copies.steps() == [50, 40, 20, 10]

    def refuse(*_, **__):
        raise OSError("not now")

    monkeypatch.setattr(copies._files, "rm", refuse)
    with pytest.raises(OSError, match="not now"):
        copies.follow(write(run, 60), chosen(last=1))
    assert copies.steps()[0] == 60
    monkeypatch.undo()
    assert not copies._files.exists(f"{copies._root}/50/manifest.json")  # it went first
    copies.follow(write(run, 70), chosen(last=1))
    assert {name.split("/")[0] for name in listed(place)} == {"70", "config.yaml"}  # what was left of the others too


@pytest.mark.parametrize("fails_at", range(5))
@pytest.mark.parametrize("how", ["refuses", "sends half"])
def test_a_backend_that_fails_in_the_middle_never_leaves_a_manifest_without_its_files(
    run, place, tmp_path, monkeypatch, fails_at, how
):
    copies = Copies(place, same)
    copies.follow(write(run, 10), chosen())
    copies._named = False  # so that the configuration is sent again: five files
    put, calls = copies._files.put_file, [0]

    def flaky(path, target, **options):
        calls[0] += 1
        if calls[0] - 1 != fails_at:
            return put(path, target, **options)
        if how == "refuses":
            raise ConnectionError("https://user:pw@host/x?X-Amz-Signature=1f2e: 503")
        half = tmp_path / "half"
        half.write_bytes(Path(path).read_bytes()[:-3])
        return put(str(half), target, **options)

    monkeypatch.setattr(copies._files, "put_file", flaky)
    with pytest.raises(OSError, match="503|bytes and its copy") as failure:
        copies.follow(write(run, 20), chosen())
    assert "pw" not in reason(failure.value)
    assert "1f2e" not in reason(failure.value)
    assert copies.steps() == [10]
    assert "20/manifest.json" not in listed(place)
    assert Copies(place).newest(tmp_path / "other")[0] == tmp_path / "other" / "10"
    copies.follow(write(run, 30), chosen())  # goes on, and makes up for what is missing
    assert copies.steps() == [30, 20]
    for step in (20, 30):
        assert verify(Copies(place).get(step, tmp_path / "again")) is None


def test_a_copy_that_does_not_verify_is_passed_over_by_name(run, place, tmp_path):
    copies = Copies(place, same)
    for step in (10, 20, 30):
        copies.follow(write(run, step), chosen(last=9))
    copies._files.pipe_file(f"{copies._root}/30/model.safetensors", b"not what was written")
    copies._files.rm_file(f"{copies._root}/20/state.pt")
    found, passed_over = Copies(place).newest(tmp_path / "other")
    assert found == tmp_path / "other" / "10"
    assert [line.split(": ")[0] for line in passed_over] == [f"{place}/30", f"{place}/20"]
    assert "bytes" in passed_over[0]
    assert "missing" in passed_over[1]
    with pytest.raises(CheckpointError, match="missing"):
        copies.get(20, tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["10", "fetched.json"]


def test_a_future_that_was_left_is_neither_counted_nor_kept(run, place):
    copies = Copies(place, same)
    for step in (10, 20, 30, 40):
        copies.follow(write(run, step), chosen(last=9))
    copies.follow(write(run, 25), chosen(last=2))  # the run went on from 20
    assert copies.steps() == [40, 30, 25, 20]
    copies.follow(write(run, 30), chosen(last=2))
    assert copies.steps() == [40, 30, 25]


def test_another_runs_copies_are_refused_before_anything_is_sent(run, place):
    Copies(place, same).follow(write(run, 10), chosen())
    (run / "config.yaml").write_text("seed: 2\n")
    other = Copies(place, lambda stored: ["seed: 1 -> 2"])
    with pytest.raises(ValueError, match=r"copies of another run(.|\n)*seed: 1 -> 2"):
        other.claim()
    before = listed(place)
    with pytest.raises(ValueError, match="copies of another run"):
        other.follow(write(run, 20), chosen())
    assert listed(place) == before
    other._files.rm_file(f"{other._root}/config.yaml")
    with pytest.raises(ValueError, match="no word of whose"):
        other.claim()


def test_a_backend_that_hangs_is_left(run, place, monkeypatch):
    monkeypatch.setattr(checkpoint_copies, "DEADLINE", 0.2)
    copies, blocked = Copies(place, same), threading.Event()
    monkeypatch.setattr(copies._files, "put_file", lambda *_: blocked.wait(5))
    with pytest.raises(TimeoutError):
        copies.follow(write(run, 10), chosen())
    blocked.set()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/run", "credentials"),
        ("s3://bucket/run?X-Amz-Signature=secret", "credentials"),
        ("ssh://host/run", "is no place"),
        ("simplecache::s3://bucket/run", "is no place"),
        ("/mnt/copies", "file:///PATH"),
        ("file://relative/run", "must name a folder"),
        ("s3://bucket", "must name a folder"),
        ("s3://bucket/a b", "blanks"),
    ],
)
def test_what_is_no_place_for_copies_is_refused_without_repeating_it(url, words):
    with pytest.raises(ValueError, match=words) as refusal:
        check_copy_url(url)
    assert "secret" not in str(refusal.value)


def test_a_url_names_a_place_or_a_step_in_it():
    assert place_of("s3://bucket/run/40") == ("s3://bucket/run", 40)
    assert place_of("s3://bucket/run") == ("s3://bucket/run", None)
    assert place_of("s3://40") == ("s3://40", None)
