"""A folder that appears whole or not at all; what a killed process left of one is removed by the next that makes it."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import itertools
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from clipkit.towers.model_files import PARITY_FILE

_log = logging.getLogger(__name__)
CLAIM = ".exporting"
WORDS = (
    "clipkit export: made and removed by clipkit; safe to delete with the folders of its number once no export runs\n"
)


def require_free(out: Path, *, force: bool) -> None:
    """Whether a folder may be made.

    Raises:
        ValueError: If it or what should hold it is a file, or it holds files and ``force`` is not set, or a run, which is never replaced.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file; name a folder to export into")
    if (out / "checkpoints").is_dir():
        raise ValueError(f"{out} holds a run, which no export replaces; name another folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ValueError(f"{out} is not empty; name another folder, or replace it with --force")


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Fill a temporary sibling of ``out``; it takes that name when the block ends well and vanishes when it does not.

    Args:
        out: The folder to make.
        force: Whether one that holds files may be replaced; it stays untouched until the new one is complete. An earlier export goes then,
            anything else is kept beside it as ``NAME.replaced``, and that is said.

    Yields:
        The folder to fill.

    Raises:
        ValueError: If ``out`` is a file, or holds files and ``force`` is not set.
    """
    _sweep(out.resolve())  # first: it may put back what was there
    require_free(out, force=force)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    fresh, old = _places(out, mark)
    with _claimed(out.with_name(f".{out.name}.{mark}{CLAIM}")):
        try:
            fresh.mkdir()
            yield fresh
            if out.is_dir():
                os.rename(out, old)
            os.rename(fresh, out)
        finally:
            if old.is_dir() and not out.is_dir():  # the second rename failed: put back what was there
                os.rename(old, out)
            shutil.rmtree(fresh, ignore_errors=True)
            _retire(old, out)


def _places(out: Path, mark: str) -> tuple[Path, Path]:
    """Where the new folder grows, and where the one that it replaces waits for it."""
    return out.with_name(f".{out.name}.new-{mark}"), out.with_name(f".{out.name}.old-{mark}")


def _retire(old: Path, out: Path) -> None:
    """What was replaced: an export can be made again, anything else is kept."""
    if not old.is_dir():
        return
    if (old / PARITY_FILE).is_file() or not any(old.iterdir()):
        shutil.rmtree(old, ignore_errors=True)
        return
    names = (out.with_name(f"{out.name}.replaced{f'-{number}' if number > 1 else ''}") for number in itertools.count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    os.rename(old, kept)
    _log.warning("%s was no export: what it held is kept in %s", out, kept)


@contextlib.contextmanager
def _claimed(claim: Path) -> Iterator[None]:
    """A file that says whose the folders of a mark are, locked for as long as this process is at it, however it ends.

    The words come after the lock: what bears them and is not locked belongs to a process that is gone.
    """
    with claim.open("x") as file:
        try:
            with contextlib.suppress(
                OSError
            ):  # a file system without locks: then nobody sweeps, who cannot lock it either
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(WORDS)
            file.flush()
            yield
        finally:
            claim.unlink(missing_ok=True)


def _sweep(out: Path) -> None:
    """Remove what exports to ``out`` left that were killed: only what a claim of ours names, and nobody holds. Links are not followed."""
    for claim in out.parent.glob(f".{glob.escape(out.name)}.*{CLAIM}"):
        mark = claim.name[len(out.name) + 2 : -len(CLAIM)]
        if not re.fullmatch(r"\d+-[0-9a-f]{8}", mark):
            continue
        with contextlib.suppress(OSError), open(os.open(claim, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.read(len(WORDS) + 1) != WORDS:
                continue
            fresh, old = _places(out, mark)
            if old.is_dir() and not out.exists():  # killed between the two renames: what was there is still the user's
                os.rename(old, out)
            elif not fresh.exists():  # the new one had taken its place
                _retire(old, out)
            shutil.rmtree(fresh, ignore_errors=True)
            claim.unlink(missing_ok=True)
