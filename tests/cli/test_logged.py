"""What is logged has one form in every verb, whatever other packages did to the root logger."""

import io
import logging
import sys

import pytest
from PIL import Image

from clipkit.cli.main import run


@pytest.fixture
def shouting():
    """A root logger with another package's handler, as ``logging.warning`` of open_clip leaves it."""
    handler = logging.StreamHandler(text := io.StringIO())
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    logging.getLogger().addHandler(handler)
    yield text
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def data(tmp_path):
    """Pictures, of which one cannot be read, and one caption that is longer than any context."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (60 * number, 30, 90)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"shade {number} " * (50 if number == 1 else 1))
    (folder / "2.png").write_bytes(b"cut")
    return folder


def test_embed_warns_of_what_it_leaves_out(shouting, data, tiny_model, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["embed", str(tiny_model), str(data), "--out", str(out)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("warning: 1 pictures cannot be read and were left out") for line in lines)
    assert any(line.startswith("warning: 1 captions are longer than the context") for line in lines)
    assert not shouting.getvalue()


@pytest.mark.parametrize("verb", ["evaluate", "embed", "search", "export", "report", "fit", "explain"])
def test_every_verb_warns_in_one_form(verb, shouting, monkeypatch, capsys):
    def app(arguments, standalone_mode):
        logging.getLogger("clipkit.data.index").warning("%s changed", *arguments)
        logging.getLogger("clipkit.data.index").info("not said")

    monkeypatch.setattr("clipkit.cli.main.app", app)
    assert run([verb]) == 0
    assert capsys.readouterr().err == f"warning: {verb} changed\n"
    assert not shouting.getvalue()


def test_python_users_keep_their_own_logging(shouting, caplog, capsys, monkeypatch):
    monkeypatch.setattr("clipkit.cli.main.app", lambda *_, **__: 1 / 0)
    assert run(["evaluate"]) == 1
    capsys.readouterr()
    logging.getLogger("clipkit.data.index").warning("heard")
    assert "WARNING:clipkit.data.index:heard" in shouting.getvalue()
    assert "heard" not in capsys.readouterr().err
    assert caplog.messages == ["heard"]


def test_a_full_disk_under_standard_error_stops_nothing(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipkit.cli.main.app", lambda *_, **__: logging.getLogger("clipkit.data").warning("changed"))
    monkeypatch.setattr(sys, "stderr", Full())
    assert run(["evaluate"]) == 0
