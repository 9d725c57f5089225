"""One piece of work beside the training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Does a piece of work in a thread, one at a time, or at once where there is no thread.

    A process that ends by an exception ends after the work that is under way.

    Args:
        thread: Whether there is one.
    """

    def __init__(self, *, thread: bool) -> None:
        self.thread = thread
        self._pool = ThreadPoolExecutor(1, "checkpoint") if thread else None
        self._under_way: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the last piece of work, then begin this one."""
        self.wait()
        if self._pool is None:
            work()
        else:
            self._under_way = self._pool.submit(work)

    def wait(self) -> None:
        """Return when nothing is under way; what the work raised is raised here, once."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()
