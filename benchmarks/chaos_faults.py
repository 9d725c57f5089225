"""What `chaos.py` puts into a rank before it trains: the moments that cannot be hit from outside, and the marker that one was.

Nothing of it is in clipkit: the calls by which a checkpoint reaches the disk (`fsync`, `rename`, `replace`, `unlink`, `rmdir` below
`checkpoints/`) and the public `ShardDataModule.advance` are wrapped in this process alone. A hit first writes its marker, then kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One fault of a launch.

    Args:
        kind: What is done (``random``, ``save``, ``edge``, ...).
        victim: The rank that it is done to.
        after: Steps of this launch before it.
        point: Of ``save``: how many write points of this launch go before it.
        cut: Of ``save``: the share of the file that had been written when the kill came.
        wait: In [0, 1): where within a step, or seconds of a pause.
        cold: Whether the ranks are started by the command line.
        workers: Loader workers of a rank.
    """

    kind: str
    victim: int
    after: int
    point: int = 0
    cut: float = 1.0
    wait: float = 0.0
    cold: bool = False
    workers: int = 0


def hit(launch: Path, fault: Fault, **where: Any) -> None:
    """Leave the marker, then kill the victim, which may be this process."""
    marker = launch / "marker.json"
    try:
        with marker.open("x") as file:
            json.dump(asdict(fault) | {"time": time.time()} | where, file)
    except FileExistsError:
        return
    os.kill(json.loads((launch / "pids.json").read_text())[fault.victim], signal.SIGKILL)


def install(launch: Path, fault: Fault | None, rank: int, start: int, edges: Callable[[int, int], bool]) -> None:
    """Wrap this process's calls.

    Args:
        launch: Folder of this launch's marker, process ids and counts.
        fault: What is to happen, if it happens from inside.
        rank: This process's rank.
        start: The step that the launch goes on from.
        edges: Whether an epoch of the plan ends within the positions of a batch (first, size).
    """
    if rank == 0:
        _wrap_writes(launch, fault if fault is not None and fault.kind == "save" else None)
    _wrap_advance(launch, fault if fault is not None and fault.kind == "edge" else None, rank, start, edges)


def _wrap_writes(launch: Path, fault: Fault | None) -> None:
    count, lock = [0], threading.Lock()

    def point(name: str, path: str) -> None:
        with lock:
            number, count[0] = count[0], count[0] + 1
        (launch / "points").write_text(str(count[0]))
        if fault is None or number != fault.point:
            return
        if name == "fsync" and fault.victim == 0 and os.path.isfile(path):
            os.truncate(path, int(os.path.getsize(path) * fault.cut))  # as if the kill had come while it was written
        hit(launch, fault, call=name, path=path)

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, _pointed(name, getattr(os, name), point))


def _pointed(name: str, real: Callable[..., Any], point: Callable[[str, str], None]) -> Callable[..., Any]:
    def call(target: Any, *args: Any, **kwargs: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        if kwargs.get("dir_fd") is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{kwargs['dir_fd']}"), path)
        if "/checkpoints" in str(path):
            point(name, str(path))
        return real(target, *args, **kwargs)

    return call


def _wrap_advance(launch: Path, fault: Fault | None, rank: int, start: int, edges: Callable[[int, int], bool]) -> None:
    from clipkit.data.datamodule import ShardDataModule

    real = ShardDataModule.advance
    descriptors = (launch / f"descriptors.{rank}").open("a", buffering=1)

    def advance(self: ShardDataModule, batch: dict[str, Any]) -> None:
        step = int(batch["position"]) // self.batch_size + 1
        due = fault is not None and rank == fault.victim and step - start >= fault.after
        near = any(edges(int(batch["position"]) + shift * self.batch_size, self.batch_size) for shift in (-1, 0, 1))
        if due and near and fault is not None:
            if fault.wait < 0.2:
                hit(launch, fault, step=step, position=int(batch["position"]))
            threading.Timer(0.1 * random.Random(fault.wait).random(), hit, (launch, fault), {"step": step}).start()
        real(self, batch)
        descriptors.write(f"{step} {len(os.listdir('/proc/self/fd'))}\n")

    ShardDataModule.advance = advance  # type: ignore[method-assign]
