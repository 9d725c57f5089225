"""Folders of exports that are killed: nothing stays for good, and nothing of anybody else's goes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.exporters import folder
from clipkit.exporters.folder import CLAIM, WORDS, new_folder

HALF = """import sys, time
from pathlib import Path
from clipkit.exporters.folder import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "weights").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
EXPORT = """import sys, time
from clipkit.exporters.open_clip import OpenClipFormat
def write(self, encoder, folder):
    (folder / "weights").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
OpenClipFormat.write = write
from clipkit.__main__ import main
main()
"""


def started(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def killed(out: Path) -> None:
    process = started(HALF, out)
    process.kill()
    process.communicate()


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def test_sigterm_unwinds_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    process = started(EXPORT, "export", tiny_model, "--out", tmp_path / "there" / "out")
    assert len(names(tmp_path / "there")) == 2  # the folder that grows, and whose it is
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.splitlines()[-1]) == (143, "stopped by SIGTERM")
    assert not names(tmp_path / "there")


def test_what_a_killed_export_left_goes_with_the_next_one_to_the_same_folder(tmp_path: Path) -> None:
    killed(tmp_path / "out")
    (left,) = tmp_path.glob(".out.new-*")
    with new_folder(tmp_path / "other"):
        pass
    assert left.is_dir()
    with new_folder(tmp_path / "out"):
        assert not left.exists()
    assert names(tmp_path) == {"out", "other"}


def test_an_export_that_runs_is_left_alone(tmp_path: Path) -> None:
    process = started(HALF, tmp_path / "out")
    try:
        with new_folder(tmp_path / "out"), new_folder(tmp_path / "out", force=True):
            assert len(list(tmp_path.glob(".out.new-*"))) == 3
    finally:
        process.kill()
        process.communicate()
    assert len(list(tmp_path.glob(".out.new-*"))) == 1


def test_nothing_that_no_export_made_is_removed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kept.txt").write_text("kept")
    (tmp_path / ".out.new-1-0123abcd").mkdir()  # by its name alone
    (tmp_path / ".out.new-2-0123abcd").mkdir()
    (tmp_path / f".out.2-0123abcd{CLAIM}").write_text("somebody else's words")
    (tmp_path / ".out.new-3-0123abcd").symlink_to(mine)
    (tmp_path / f".out.3-0123abcd{CLAIM}").write_text(WORDS)
    (tmp_path / ".out.new-4-0123abcd").mkdir()
    (tmp_path / "words").write_text(WORDS)
    (tmp_path / f".out.4-0123abcd{CLAIM}").symlink_to(tmp_path / "words")
    before = names(tmp_path) - {f".out.3-0123abcd{CLAIM}"}
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) - {"out"} == before
    assert (mine / "kept.txt").read_text() == "kept"


def test_killed_between_the_two_renames_what_was_there_comes_back(tmp_path: Path) -> None:
    old = tmp_path / ".out.old-7-0123abcd"
    old.mkdir()
    (old / "mine.txt").write_text("kept")
    (tmp_path / ".out.new-7-0123abcd").mkdir()
    (tmp_path / f".out.7-0123abcd{CLAIM}").write_text(WORDS)
    with pytest.raises(ValueError, match="out is not empty"), new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_killed_after_them_what_was_replaced_goes(tmp_path: Path) -> None:
    for name in (".out.old-7-0123abcd", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parity.json").write_text(name)
    (tmp_path / f".out.7-0123abcd{CLAIM}").write_text(WORDS)
    with new_folder(tmp_path / "out", force=True):
        pass
    assert names(tmp_path) == {"out"}


def test_what_no_export_made_is_kept(tmp_path: Path) -> None:
    for number in ("7", "8"):  # killed after both renames, twice
        (tmp_path / f".out.old-{number}-0123abcd").mkdir()
        (tmp_path / f".out.old-{number}-0123abcd" / "mine.txt").write_text(number)
        (tmp_path / f".out.{number}-0123abcd{CLAIM}").write_text(WORDS)
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", force=True):
        pass
    assert names(tmp_path) == {"out", "out.replaced", "out.replaced-2"}
    held = {(tmp_path / name / "mine.txt").read_text() for name in ("out.replaced", "out.replaced-2")}
    assert held == {"7", "8"}


def test_without_locks_exports_work_and_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path / "out")

    def none(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(folder.fcntl, "flock", none)
    with new_folder(tmp_path / "out"):
        pass
    assert len(list(tmp_path.glob(".out.new-*"))) == 1
