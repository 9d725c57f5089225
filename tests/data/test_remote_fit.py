"""The command line over remote shards: a run, what is refused, and no secret in anything that is said or written."""

import json

import pytest

from clipkit.cli.main import run as command_line
from tests.conftest import write_shard
from tests.test_training import write_config


@pytest.fixture
def settings(tmp_path, tiny_model, web):
    """Writes a configuration of two steps over the given shards."""
    for i in range(2):
        web.files[f"/{i:05d}.tar"] = write_shard(tmp_path / f"{i:05d}.tar", 32, first=32 * i).read_bytes()

    def make(shards, **data):
        data = {"train": {"squares": {"shards": shards}}, "batch_size": 16, "cache": str(tmp_path / "cache"), **data}
        trainer = {"length": "2 steps", "devices": 1, "accelerator": "cpu"}
        return write_config(tmp_path, tiny_model, tmp_path, data={"workers": 0, **data}, trainer=trainer)

    return make


def test_a_run_over_http_says_no_secret(settings, web, tmp_path, capfd):
    web.files["/sizes.json"] = json.dumps({f"{i:05d}.tar": 32 for i in range(2)}).encode()
    web.script["/00000.tar"] = ["503"]
    address = web.url.replace("http://", "http://me:canary@") + "/{00000..00001}.tar?X-Amz-Signature=canary"
    config = str(settings(address, cache_size="1GB", workers=1))
    run = tmp_path / "run"
    assert command_line(["fit", config, f"run={run}"]) == 0
    assert command_line(["fit", config, f"run={run}", f"data.train.squares.shards={address}2"]) == 0  # a new signature
    other = address.replace("{00000..00001}", "00000")
    assert command_line(["fit", config, f"run={run}", f"data.train.squares.shards={other}"]) == 2
    web.script["/00000.tar"] = ["403"] * 9
    assert command_line(["fit", config, f"run={tmp_path / 'other'}", f"data.cache={tmp_path / 'empty'}"]) == 2
    web.files["/sizes.json"] = b"{"
    assert command_line(["fit", config, f"run={tmp_path / 'other'}", f"data.cache={tmp_path / 'third'}"]) == 2
    said = "".join(capfd.readouterr())
    assert "at most 1.0 GB of them (data.cache_size)" in said
    assert "the server answered 403" in said
    assert "/sizes.json?***: is no JSON" in said
    assert "canary" not in said
    written = [path for folder in (run, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 8
    assert [path.name for path in written if b"canary" in path.read_bytes()] == []  # the kept configuration neither


def test_without_counts_the_command_that_makes_them_is_named(settings, web, tmp_path, capsys):
    config = settings(f"{web.url}/{{00000..00001}}.tar")
    assert command_line(["fit", str(config), f"run={tmp_path / 'run'}"]) == 2
    assert f"clipkit data index '{web.url}/{{00000..00001}}.tar'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_pipe_needs_the_users_word(settings, tmp_path, capsys):
    config = str(settings(f"pipe:cat {tmp_path}/{{00000..00001}}.tar"))
    assert command_line(["fit", config, f"run={tmp_path / 'run'}"]) == 2
    assert "--allow-pipe" in capsys.readouterr().err
    assert command_line(["fit", config, f"run={tmp_path / 'run'}", "--allow-pipe"]) == 2
    said = capsys.readouterr().err
    assert "no count" in said
    assert "clipkit data index 'pipe:cat " in said
