"""A stop signal while ``fit`` still loads, or has nothing more to save: the code is 75 as in training, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

STOPPED = 75  # as ``run_folder.STOPPED_CODE``, whose imports take the seconds that this is for
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C is Python's own


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Inside, the signals that would end this process without a word end it with 75, but while somebody else takes them.

    There is no ``stopped.json``: the run folder may not be known yet.
    """
    taken = []
    with contextlib.suppress(ValueError):  # not the main thread: signals stay with who owns them
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _leave)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    said = f"stopped by {signal.Signals(number).name} outside training; nothing is lost, the same command goes on\n"
    os.write(sys.stderr.fileno(), said.encode())
    if (launch := sys.modules.get("clipkit.launch")) is not None and hasattr(launch, "leave_word"):
        launch.leave_word(STOPPED, "")
    os._exit(STOPPED)
