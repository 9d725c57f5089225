"""Before the ranks have met there is nothing to lose and nobody to agree with: a signal ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from clipkit.callbacks.agreement import STOP_SIGNALS
from clipkit.run_folder import STOPPED_CODE


@contextlib.contextmanager
def leave_at_once(last_words: Callable[[str], None]) -> Iterator[None]:
    """Inside, a stop signal that this process has a handler for ends it with 75, whatever it waits for.

    A thread reads the signal's number from a pipe: Python runs no handler while the main thread waits for its peers inside a library. The
    code is not 0, so that torchrun ends the other ranks, which would wait for this one.

    Args:
        last_words: Told the signal's name before the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    here, there = os.pipe()
    os.set_blocking(there, False)

    def watch() -> None:
        while number := os.read(here, 1):
            if number[0] in STOP_SIGNALS:
                last_words(signal.Signals(number[0]).name)
                os._exit(STOPPED_CODE)

    watcher = threading.Thread(target=watch, daemon=True)
    before = signal.set_wakeup_fd(there, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(there)
        watcher.join()
        os.close(here)
