"""The same function over many shards: in this process, in several, or on a Ray cluster; results in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items under way for each worker: none waits for the next, and not all are held at once."""


@dataclass(frozen=True)
class Failure:
    """An error as it travels between processes: not every exception can be sent.

    Args:
        item: What was worked on.
        text: What went wrong.
        of_the_input: Whether it was a ValueError, the user's to mend.
    """

    item: str
    text: str
    of_the_input: bool

    def error(self) -> Exception:
        """The exception to raise, with the item's name in it."""
        text = self.text if self.item in self.text else f"{self.item}: {self.text}"
        return ValueError(text) if self.of_the_input else RuntimeError(text)


@dataclass(frozen=True)
class Call(Generic[Item, Result]):
    """A function that returns its failure instead of raising it."""

    function: Callable[[Item], Result]

    def __call__(self, item: Item) -> Result | Failure:
        """Run it on one item."""
        try:
            return self.function(item)
        except ValueError as error:
            return Failure(str(item), str(error), of_the_input=True)
        except Exception as error:
            return Failure(str(item), f"{type(error).__name__}: {error}", of_the_input=False)


def map_shards(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ray: str | None = None
) -> Iterator[Result]:
    """Run a function on every item and yield the results in the items' order.

    Args:
        function: A module's function (or a ``functools.partial`` of one): it is sent to other processes by its name.
        items: What it is run on; taken as they are needed. Their text names them in errors.
        workers: Processes; 1 or less runs everything in this one.
        ray: Address of a Ray cluster (``auto``, ``HOST:PORT``, ``ray://HOST:PORT``), which then does the work on all its cores.

    Raises:
        ValueError: What the function raised as one, with the item's name; or Ray is not installed or not reached.
        RuntimeError: Any other error of the function, with the item's name, or a worker that died.
    """
    call = Call(function)
    if ray is not None:
        from clipkit.data.ray_cluster import map_on_ray

        results: Iterator[Result | Failure] = map_on_ray(call, items, ray)
    else:
        results = _map_on_processes(call, items, workers) if workers > 1 else map(call, items)
    for result in results:
        if isinstance(result, Failure):
            raise result.error()
        yield result


def _map_on_processes(
    call: Callable[[Item], Result | Failure], items: Iterable[Item], workers: int
) -> Iterator[Result | Failure]:
    # forked from a clean server: this process may hold threads and locks, which a plain fork would copy in mid-flight
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    todo = iter(items)
    under_way: deque[tuple[Item, Future[Any]]] = deque()
    pool = ProcessPoolExecutor(workers, context, initializer=_be_a_worker)

    def submit(item: Item) -> Future[Any]:
        with _without_main(call):  # this is where the pool starts its processes
            return pool.submit(call, item)

    try:
        under_way.extend((item, submit(item)) for item in islice(todo, AHEAD * workers))
        while under_way:
            item, future = under_way.popleft()
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"{item}: a worker died, killed perhaps for its memory; try fewer workers"
                ) from error
            under_way.extend((item, submit(item)) for item in islice(todo, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_main(call: Any) -> Iterator[None]:
    """Start processes that do not import the user's script: one without a guard would run again in each of them."""
    function = call.function
    main = sys.modules["__main__"]
    if getattr(function, "func", function).__module__ != "__main__":
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _be_a_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it also where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def follow() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
