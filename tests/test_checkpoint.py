import gc
import json
import os
import random
import resource
import weakref

import pytest
import torch

from clipkit import checkpoint
from clipkit.checkpoint import (
    CheckpointError,
    newest,
    read_checkpoint,
    remove_unfinished,
    steps,
    verify,
    weight_hash,
    write_checkpoint,
)


def write(folder, step, value=1.0):
    model = {"w": torch.full((3, 2), value), "b": torch.arange(4)}
    state = {
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "lr": 0.1}],
        "callbacks": {"name": [1, None, "x"]},
    }
    write_checkpoint(folder / str(step), model=model, state=state, info={"step": step})
    return folder / str(step)


def test_what_was_written_comes_back(tmp_path):
    stored = read_checkpoint(write(tmp_path, 10))
    assert stored.model["w"].tolist() == [[1.0, 1.0]] * 3
    assert stored.model["b"].dtype == torch.int64
    assert stored.state["optimizer_states"][0]["state"][0]["step"].item() == 3
    assert stored.info == {"step": 10}


def test_the_newest_that_verifies_wins_and_others_are_named(tmp_path):
    for step in (9, 10, 100):
        write(tmp_path, step)
    (tmp_path / "100" / "model.safetensors").write_bytes(b"")
    (tmp_path / "10" / "manifest.json").unlink()
    found, passed_over = newest(tmp_path)
    assert found == tmp_path / "9"
    assert [line.split(": ", 1)[0].rsplit("/", 1)[1] for line in passed_over] == ["100", "10"]
    assert "0 bytes" in passed_over[0]
    assert "missing" in passed_over[1]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "state.json"])
def test_a_flipped_bit_anywhere_is_found(tmp_path, name):
    folder = write(tmp_path, 1)
    whole = (folder / name).read_bytes()
    rng = random.Random(0)
    for _ in range(20):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(data)
        assert "SHA-256" in verify(folder)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(folder)
    (folder / name).write_bytes(whole)
    assert verify(folder) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 99, "files": {}}', '{"version": 1, "files": {}}', '{"version": 1, "files": 3}'],
)
def test_a_manifest_that_says_nothing_useful_does_not_verify(tmp_path, text):
    folder = write(tmp_path, 1)
    (folder / "manifest.json").write_text(text)
    assert verify(folder) is not None


def test_objects_are_refused_by_place_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match=r"state\['a'\]\[1\] is a PosixPath"):
        write_checkpoint(tmp_path / "1", model={}, state={"a": [1, tmp_path]}, info={})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path, 5, value=1.0)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 5, value=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    assert read_checkpoint(tmp_path / "5").model["w"][0, 0] == 1


@pytest.mark.parametrize("most", [100, 6000], ids=["weights", "state"])
def test_what_a_disk_refused_is_held_no_longer(tmp_path, most):
    """Neither by the error, nor by whatever called: a batch, or the weights' bytes, until the garbage is collected."""

    class Batch:
        pass

    def save():
        batch = Batch()
        state = {"a": torch.ones(3000)}
        try:
            write_checkpoint(tmp_path / "1", model={"w": torch.ones(99)}, state=state, info={})
        except OSError as error:
            return weakref.ref(batch), str(error)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    gc.disable()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        held, said = save()
        assert held() is None
        assert "too large" in said
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        gc.enable()
    assert list(tmp_path.iterdir()) == []


def test_writing_a_step_again_replaces_it(tmp_path):
    write(tmp_path, 5, value=1.0)
    assert read_checkpoint(write(tmp_path, 5, value=2.0)).model["w"][0, 0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_leftovers_of_killed_writers_are_no_checkpoints_and_go_away(tmp_path):
    write(tmp_path, 5)
    (tmp_path / f".6.writing-{os.getpid()}").mkdir()
    (tmp_path / "notes").mkdir()
    assert steps(tmp_path) == [tmp_path / "5"]
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "notes"]


def test_the_manifest_names_size_and_hash_of_each_file(tmp_path):
    folder = write(tmp_path, 5)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert {name: entry["size"] for name, entry in files.items()} == {
        name: (folder / name).stat().st_size for name in ("model.safetensors", "state.pt", "state.json")
    }


def test_the_weight_hash_tells_bits_apart_but_not_places():
    a = {"w": torch.ones(2, 2), "v": torch.zeros(1, dtype=torch.bfloat16)}
    assert weight_hash(a) == weight_hash(dict(reversed(a.items())))
    assert weight_hash(a) != weight_hash(a | {"w": torch.ones(4)})
    assert weight_hash(a) != weight_hash(a | {"w": torch.nextafter(torch.ones(2, 2), torch.tensor(2.0))})
