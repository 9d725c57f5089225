"""A stop signal while ``fit`` is still loading: the code is 75 as later, for nothing is lost and the same command begins again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

STOPPED = 75  # as ``run_folder.STOPPED_CODE``, whose imports take the seconds that this is for
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C is Python's own


def leave_while_loading() -> None:
    """From now on, until somebody else takes them, the signals that would end this process without a word end it with 75.

    There is no ``stopped.json`` yet: the run folder is not known.
    """
    with contextlib.suppress(ValueError):  # not the main thread: signals stay with who owns them
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    said = f"stopped by {signal.Signals(number).name} while loading; nothing is lost, the same command begins again\n"
    os.write(sys.stderr.fileno(), said.encode())
    if (launch := sys.modules.get("clipkit.launch")) is not None and hasattr(launch, "leave_word"):
        launch.leave_word(STOPPED, "")
    os._exit(STOPPED)
