"""Whether somebody trains in a run folder just now: a lock that the kernel takes back however the trainer ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from clipkit import distributed

LOCK = ".training"
_mine: set[Path] = set()


@contextlib.contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Say, while the block runs, that rank 0 trains in the folder; where a file system has no locks, nobody can be told.

    A record lock: the workers that a trainer forks do not hold it on when it is killed, and a network file system shows it to others.

    Args:
        folder: The run folder, which is there.
    """
    file = _locked(folder) if distributed.rank() == 0 else None
    if file is not None:
        _mine.add(folder.resolve())
    try:
        yield
    finally:
        if file is not None:
            _mine.discard(folder.resolve())
            (folder / LOCK).unlink(missing_ok=True)
            file.close()  # which lets the lock go


def _locked(folder: Path) -> TextIO | None:
    """The lock file, held; None where another holds it, or nothing can be locked."""
    try:
        file = (folder / LOCK).open("a+")
    except OSError:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"{os.uname().nodename} {os.getpid()}\n")
    file.flush()
    return file


def trainer_of(folder: Path) -> str | None:
    """Who trains in a run folder just now (machine and process), or None as far as locks can tell."""
    if folder.resolve() in _mine:  # to open and close the file would let the lock go
        return "this process"
    try:
        with (folder / LOCK).open() as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                machine, _, process = file.read(200).strip().partition(" ")
                return f"process {process or '?'} of {machine or 'another machine'}"
    except OSError:
        pass
    return None
