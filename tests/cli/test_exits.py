"""What the user did wrong is said in a few words, with code 2 and no traceback."""

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from clipkit.cli.exits import exit_code
from clipkit.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fitt"], "No such command 'fitt'"),
        (["fit"], "Missing argument 'config'"),
        (["fit", "a.yaml", "--no-such-option"], "--no-such-option"),
        (["evaluate", "model"], "--data"),
        (
            ["evaluate", "m", "--data", "x", "--batch-size", "-3"],
            "'--batch-size': -3: out of range; allowed: at least 1",
        ),
        (["embed", "m", "x", "--out", "o", "--batch-size=-3"], "'--batch-size': -3: out of range; allowed: at least 1"),
        (["embed", "m", "x", "--out", "o", "--workers", "1.5"], "'--workers': 1.5: Input should be a valid integer"),
        (["search", "x", "q", "-k", "0"], "'-k' / '--k': 0: out of range; allowed: at least 1"),
        (["search", "x", "--serve", "--port", "99999"], "'--port': 99999: out of range; allowed: 0 to 65535"),
        (["export", "m", "--out", "o", "--weight", "x"], "'--weight': x: Input should be a valid number"),
        (["data", "unpack"], "No such command 'unpack'"),
        (["config"], "Usage"),
        ([], "Usage"),
    ],
)
def test_a_command_line_that_is_wrong_is_bad_input(arguments, words, capsys):
    code = run(arguments)
    said = capsys.readouterr()
    assert code == 2
    assert words in said.err + said.out
    assert "Traceback" not in said.err


def test_help_is_no_error(capsys):
    assert run(["--help"]) == 0
    assert "fit" in capsys.readouterr().out


def test_an_error_of_ours_shows_where_it_happened(monkeypatch, capsys):
    monkeypatch.setattr("clipkit.api.fit", lambda *args, **kwargs: 1 / 0)
    assert run(["fit", "x.yaml"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def failing(call):
    try:
        call()
    except OSError as error:
        return error
    raise AssertionError("it went well")


def test_a_place_that_is_none_is_bad_input_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for call, words in (
        (lambda: (tmp_path / "none").read_text(), f"{tmp_path}/none: No such file or directory"),
        (lambda: (tmp_path / "file" / "x").mkdir(), f"{tmp_path}/file/x: Not a directory"),
        (lambda: (tmp_path / "file").mkdir(), f"{tmp_path}/file: File exists"),
        (lambda: (tmp_path / "folder").write_text(""), f"{tmp_path}/folder: Is a directory"),
        (
            lambda: os.rename(tmp_path / "none", tmp_path / "a"),
            f"{tmp_path}/none to {tmp_path}/a: No such file or directory",
        ),
    ):
        assert exit_code(failing(call)) == (2, f"error: {words}")
    assert exit_code(PermissionError(errno.EACCES, "Permission denied", b"/x")) == (2, "error: /x: Permission denied")
    assert exit_code(PermissionError("403 for https://b/a?X-Amz-Signature=canary"))[0] == 1  # no place of the user's


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_fails_is_a_failure_in_one_line(number):
    error = OSError(number, os.strerror(number), "/data/x")
    assert exit_code(error) == (1, f"error: /data/x: {os.strerror(number)}")
    assert exit_code(OSError("no number, no place")) == (1, "error: no number, no place")


def test_the_traceback_is_there_when_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("CLIPKIT_TRACEBACK", "1")
    code, words = exit_code(failing(Path("/dev/null/x").read_text))
    assert code == 2
    assert "Traceback" in words
    assert "NotADirectoryError" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "MODEL", "--out", "/dev/null/x"], "/dev/null is a file; name a folder"),
        (["embed", "MODEL", "PICTURES", "--out", "/dev/null/x"], "/dev/null"),
        (["search", "PICTURES", "red", "--model", "MODEL", "--html", "PICTURES/page.html"], ": Is a directory"),
    ],
)
def test_commands_say_it_so(arguments, words, tiny_model, tmp_path, capsys, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (20, 20), "red").save(pictures / "a.png")
    page = pictures / "page.html"
    page.mkdir()
    places = {"MODEL": str(tiny_model), "PICTURES": str(pictures), "PICTURES/page.html": str(page)}
    assert run([places.get(argument, argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_a_rank_that_alone_misses_a_place_ends_the_others(monkeypatch, tmp_path):
    """A rank that leaves with 0 lets its peers wait for it; the code still comes from the word that it left."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("clipkit.launch.die_with_torchrun", lambda: None)
    for number, (error, left) in enumerate(((ValueError("for all"), 0), (FileNotFoundError(2, "none", "/x"), 2))):
        word = tmp_path / f"{number}.json"
        monkeypatch.setenv("CLIPKIT_OUTCOME", str(word))

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("clipkit.api.fit", fail)
        assert run(["fit", "x.yaml"]) == left
        assert json.loads(word.read_text())["code"] == 2
