"""Stop signals where nobody else takes them.

While ``fit`` still loads, or has nothing more to save, the code is 75 as in training, and the same command goes on. Every other command
unwinds, so that what it had half written goes, and leaves with 143.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

STOPPED, TERMINATED = 75, 128 + signal.SIGTERM  # 75 as ``run_folder.STOPPED_CODE``, whose imports take seconds
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C is Python's own
Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def answering(*, training: bool) -> Iterator[None]:
    """Inside, the signals that would end this process without a word are answered, but while somebody else takes them.

    There is no ``stopped.json``: the run folder may not be known yet.

    Args:
        training: Whether the command is ``fit``: 75 at once; else SIGTERM is an exception, but on a rank that a launcher started: one that waits
            for its peers in a collective would never come to see it.
    """
    if training:
        handlers: dict[signal.Signals, Handler] = dict.fromkeys(SIGNALS, _leave)
    else:
        handlers = {} if "LOCAL_RANK" in os.environ else {signal.SIGTERM: _unwind}
    taken = []
    with contextlib.suppress(ValueError):  # not the main thread: signals stay with who owns them
        for number, handler in handlers.items():
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, handler)
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


def _unwind(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    os.write(sys.stderr.fileno(), f"stopped by {signal.Signals(number).name}\n".encode())
    raise SystemExit(TERMINATED)


def _in_child() -> None:
    """A forked worker ends at SIGTERM as it did: a pool ends its own by it, and they would each say so."""
    if signal.getsignal(signal.SIGTERM) is _unwind:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)
