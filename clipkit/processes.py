"""Processes end with the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> bool:
    """Ask Linux to kill this process when its parent ends; says whether the system can.

    torchrun puts each rank into a session of its own: no signal to torchrun's group reaches it, and it would train on, unwatched. A loader
    process would look for its parent only every few seconds.
    """
    if _LIBC is None:
        return False
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return True
