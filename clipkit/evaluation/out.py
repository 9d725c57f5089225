"""Where results go: seen before anything is evaluated, so that no file of the user's is lost, and no evaluation either."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

FILES = (".json", ".csv", ".md")
"""Endings of ``--out`` that name a file; anything else is a folder."""
CSV_HEAD = ("dataset", "model", "pretrained", "task", "figure", "value", "low", "high")
MARKDOWN_HEAD = ("| data | model | figure | value | 95 % interval |", "| --- | --- | --- | ---: | ---: |")
_KEYS = {
    "dataset",
    "model",
    "pretrained",
    "task",
    "metrics",
    "hashes",
    "clipkit",
}  # CLIP_benchmark writes the first five
_MOST_BYTES = 2**24


def check_out(out: Path) -> None:
    """Whether results may be written there.

    Raises:
        ValueError: If a folder stands where a file should, or the other way round, the file is not one that evaluate wrote, or nothing can
            be written there.
    """
    is_folder = os.path.isdir(out)  # Path.is_dir() raises where a name is too long, say
    if is_folder if out.suffix in FILES else os.path.exists(out) and not is_folder:
        kind = "a folder" if is_folder else "a file"
        raise ValueError(f"{out}: it is {kind}; name a file ({', '.join(FILES)}), or a folder")
    if out.suffix in FILES:
        refuse_foreign(out)
    _require_writable(out if is_folder else out.parent, out)


def check_count(out: Path, results: int) -> None:
    """Whether so many results can be written there.

    Raises:
        ValueError: If several would go to one JSON file.
    """
    if out.suffix == ".json" and results != 1:
        raise ValueError(f"{out}: {results} results do not go into one file; name a folder, or a .csv or .md")


def refuse_foreign(path: Path) -> None:
    """Refuse to replace a file that evaluate did not write; an empty one is nobody's.

    Raises:
        ValueError: If there is such a file.
    """
    if os.path.exists(path) and not _is_ours(path):
        raise ValueError(f"{path}: this file was not written by clipkit evaluate; name another one, or remove it first")


def _is_ours(path: Path) -> bool:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return False
        text = path.read_bytes().decode()
        if not text:
            return True
        if path.suffix == ".csv":
            return text.startswith(",".join(CSV_HEAD) + "\n")
        if path.suffix == ".md":
            return text.startswith("\n".join(MARKDOWN_HEAD) + "\n")
        found = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= _KEYS


def _require_writable(folder: Path, out: Path) -> None:
    """Try it: permissions say little to root, or of a file system that takes no files."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=folder)
        os.close(handle)
        os.unlink(temporary)
    except OSError as error:
        raise ValueError(f"{out}: nothing can be written in {folder} ({error.strerror}); name another place") from error
