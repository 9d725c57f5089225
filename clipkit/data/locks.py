"""One process at a time works on a folder: lock files, which the kernel releases when their holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clipkit.data.index import cached_path

NAME = ".clipkit-index.lock"
_POLL = 0.25


@contextlib.contextmanager
def alone(folders: Sequence[str], cache: Path | None, done: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold the locks of folders, waiting for whoever holds one of them.

    Args:
        folders: All are held or none, so that two that want the same ones never wait for each other.
        cache: Where the lock of a folder is that cannot be written to.
        done: Asked while waiting: whether the other has done what the locks are wanted for.

    Yields:
        Whether they are held; False when it was done meanwhile.
    """
    told = False
    while not done():
        with contextlib.ExitStack() as held:
            busy = next((folder for folder in folders if not _take(folder, cache, held)), None)
            if busy is None:
                yield True
                return
        if not told and os.environ.get("RANK", "0") == "0":  # of a run, one rank speaks
            told = True
            print(f"another process is indexing {busy or '.'}; waiting for it", file=sys.stderr, flush=True)
        time.sleep(_POLL)
    yield False


def _take(folder: str, cache: Path | None, held: contextlib.ExitStack) -> bool:
    """Lock a folder if it is free. Where nothing can be locked nothing can be written, and so none is in another's way."""
    own = Path(folder or ".") / NAME
    for place in [own] if cache is None else [own, cached_path(own, cache)]:
        try:
            if place is not own:
                place.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(place.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            continue  # a folder that cannot be written to, or a file system without locks
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(place)):
                held.callback(place.unlink, missing_ok=True)
                return True
        except FileNotFoundError:
            pass
        return False  # its last holder removed it just now: the next one is another file
    return True
