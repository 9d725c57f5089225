"""The work of ``map_shards`` on a Ray cluster. Needs the extra ``ray``; every node sees the same files at the same paths."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from clipkit.config import DISTRIBUTION
from clipkit.data.parallel import AHEAD, Failure, Item, Result


def map_on_ray(
    call: Callable[[Item], Result | Failure], items: Iterable[Item], address: str
) -> Iterator[Result | Failure]:
    """Run a call on every item, a core each, and yield the results in the items' order.

    Args:
        call: What is run; the nodes must have clipkit installed.
        items: What it is run on; taken as they are needed.
        address: Of the cluster. One that this process is connected to already is used and left connected.

    Raises:
        ValueError: If Ray is not installed, or no cluster answers there.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"--ray {address}: needs Ray; pip install '{DISTRIBUTION}[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            cause = str(error).splitlines()[0]
            raise ValueError(
                f"--ray {address}: no cluster answers there ({cause}); start one with ray start"
            ) from error
    try:
        yield from _in_order(ray, call, items)
    finally:
        if ours:
            ray.shutdown()


def _in_order(ray: Any, call: Callable[[Item], Result | Failure], items: Iterable[Item]) -> Iterator[Result | Failure]:
    task = ray.remote(_run)
    at_once = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    todo = iter(items)
    under_way = deque((item, task.remote(call, item)) for item in islice(todo, at_once))
    try:
        while under_way:
            item, reference = under_way.popleft()
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:  # a node lost for good: Ray tried again by itself
                result = Failure(str(item), str(error).splitlines()[0], of_the_input=False)
            under_way.extend((item, task.remote(call, item)) for item in islice(todo, 1))
            yield result
    finally:
        for _, reference in under_way:
            ray.cancel(reference)


def _run(call: Callable[[Item], Result | Failure], item: Item) -> Result | Failure:
    return call(item)
