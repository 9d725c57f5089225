"""A rank that hangs is found and named while all others wait for it, and the run ends instead of waiting for ever.

Each rank has a thread that writes a beat to ``RUN/heartbeats/rankR.json`` and reads the beats of the others: files, because a collective, and a
store that one of the ranks keeps, may be what hangs. A rank whose main thread did not get on for longer than its phase allows, or that
sees no beat of another for longer than a step may take, asks all for their stacks (``RUN/stacks.rankR.txt``), says which rank is missing
and what it was at, kills it where it is stopped on this machine, and leaves; the others leave with it. Clocks of machines are never compared.
What a rank is at stands in memory that it shares with a file, so that a stopped one still tells it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from clipkit.data.atomic import write_atomically

HEARTBEATS, ASKED = "heartbeats", "asked.json"
PHASES = ("start", "data", "step", "pause", "end")
"""In the order in which a step passes them; ``pause`` is what comes between two steps: figures, evaluation, checkpoint."""
_STACKS = signal.SIGUSR2
_PLACE = 32
_PATIENCE = 4.0
"""Seconds in which the living ranks write their stacks and leave."""


@dataclass(frozen=True)
class Limits:
    """Seconds without progress after which a rank hangs.

    Args:
        start: From the beginning to the end of the first step: model, first batch, compilation.
        step: Within a step, waiting for its data included; also without any sign of life of a rank, whatever it is at.
        pause: Between two steps: evaluation and checkpoints.
    """

    start: float
    step: float
    pause: float

    def of(self, phase: str) -> float:
        """The limit of a phase."""
        return {"start": self.start, "data": self.step, "step": self.step}.get(phase, self.pause)


@dataclass(frozen=True)
class Seen:
    """What one rank's last beat told, and how old it is by the reader's clock.

    Args:
        rank: Its rank.
        phase: What it was at.
        step: In which step, from 1.
        silent: Seconds since its beat changed.
        where: Machine and process.
        holding: Position, shards and keys of its part of that step.
    """

    rank: int
    phase: str
    step: int
    silent: float
    where: str
    holding: str

    def __str__(self) -> str:
        doing = {"start": "preparing", "data": "waiting for data", "step": "computing", "pause": "between two steps"}
        held = f", {self.holding}" if self.holding else ""
        return f"rank {self.rank} ({self.where}) at step {self.step}, {doing.get(self.phase, self.phase)}{held}"


def diagnose(ranks: Sequence[Seen], silence: float) -> tuple[list[int], str]:
    """Which ranks are to blame, and a sentence that says why.

    Args:
        ranks: All ranks, as one of them sees them.
        silence: Seconds without a beat after which a rank is stopped or gone.

    Example:
        >>> here = Seen(0, "step", 7, 0.1, "process 8 on a", "")
        >>> diagnose([here, Seen(1, "data", 7, 0.5, "process 9 on a", "shards x.tar")], 5)
        ([1], 'rank 1 (process 9 on a) at step 7, waiting for data, shards x.tar, has not arrived where the others wait')
        >>> diagnose([here, Seen(1, "step", 7, 9.2, "process 9 on a", "")], 5)
        ([1], 'rank 1 (process 9 on a) at step 7, computing, has given no sign of life for 9 s')
    """
    silent = [seen for seen in ranks if seen.silent > silence and seen.phase != "end"]
    if silent:
        lines = [f"{seen}, has given no sign of life for {seen.silent:.0f} s" for seen in silent]
        return [seen.rank for seen in silent], "; ".join(lines)
    places = {seen.rank: (seen.step, PHASES.index(seen.phase)) for seen in ranks}
    behind = [seen for seen in ranks if places[seen.rank] < max(places.values())]
    if behind:
        lines = [f"{seen}, has not arrived where the others wait" for seen in behind]
        return [seen.rank for seen in behind], "; ".join(lines)
    return [], f"all ranks wait for one another ({ranks[0]}): the network, or a collective that they did not all enter"


class Watchdog:
    """The thread of one rank.

    Args:
        folder: The run folder, the same for all ranks.
        rank: This rank.
        world: How many there are.
        limits: How long what may take.
        holding: Tells what a rank has in hand in a step: position, shards, keys.
        leave: Ends the process with the message (empty: another rank tells it); it does not return.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world: int,
        limits: Limits,
        holding: Callable[[int, int], str],
        leave: Callable[[str], None],
    ) -> None:
        self.folder, self.rank, self.world, self.limits = folder, rank, world, limits
        self.holding, self.leave = holding, leave
        self.beats = folder / HEARTBEATS
        self.period = min(1.0, limits.step / 10)
        self.silence = max(5 * self.period, 0.5)
        self._phase, self._step = "start", 1
        self._moved = time.monotonic()
        self._changed: dict[int, tuple[Mapping[str, Any], float]] = {}
        self._me = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}
        self._beat = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._stacks: TextIO | None = None
        self._place: mmap.mmap | None = None

    @staticmethod
    def clear(folder: Path) -> None:
        """Forget the beats of an earlier launch; before any rank starts, on one of them."""
        for path in [*(folder / HEARTBEATS).glob("*"), *folder.glob("stacks.rank*.txt")]:
            path.unlink(missing_ok=True)

    def start(self) -> None:
        """Begin to beat and to watch."""
        self.beats.mkdir(parents=True, exist_ok=True)
        place = self.beats / f"rank{self.rank}.place"
        place.write_bytes(b" " * _PLACE)
        with place.open("r+b") as file:
            self._place = mmap.mmap(file.fileno(), _PLACE)
        self.enter(self._phase, self._step)
        with contextlib.suppress(OSError):  # one that is stopped before its first period is over is known too
            self._write()
        self._stacks = (self.folder / f"stacks.rank{self.rank}.txt").open("w")
        faulthandler.register(_STACKS, self._stacks, all_threads=True)  # in C: it works where Python does not get on
        self._thread = threading.Thread(target=self._watch, name="clipkit-watchdog", daemon=True)
        self._thread.start()

    def enter(self, phase: str, step: int) -> None:
        """The main thread got on.

        Args:
            phase: One of ``PHASES``.
            step: The step that it belongs to, from 1.
        """
        self._phase, self._step, self._moved = phase, step, time.monotonic()
        if self._place is not None:
            self._place[:] = f"{phase} {step}".encode().ljust(_PLACE)

    def stop(self) -> None:
        """The run is over for this rank; nobody waits for it any more."""
        if self._thread is None:
            return
        self.enter("end", self._step)
        self._done.set()
        self._thread.join(5)
        self._thread = None
        with contextlib.suppress(OSError):
            self._write()
        faulthandler.unregister(_STACKS)
        assert self._stacks is not None
        self._stacks.close()
        path = Path(self._stacks.name)
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()

    def _watch(self) -> None:
        while not self._done.wait(self.period):
            with contextlib.suppress(OSError):  # a full disk is no reason to stop watching
                self._write()
            ranks = self._look()
            if (self.beats / ASKED).exists():
                self._follow()
            elif (reason := self._hangs(ranks)) is not None:
                self._end(reason)

    def _hangs(self, ranks: Sequence[Seen]) -> str | None:
        waited, limit = time.monotonic() - self._moved, self.limits.of(self._phase)
        key = {"start": "start", "pause": "pause"}.get(self._phase, "step")
        if self._phase != "end" and waited > limit:
            return f"no progress for {waited:.0f} s (trainer.timeouts.{key} allows {limit:g} s)"
        longest = max((seen.silent for seen in ranks if seen.phase != "end"), default=0.0)
        if longest > self.limits.step:
            return f"no sign of life for {longest:.0f} s (trainer.timeouts.step allows {self.limits.step:g} s)"
        return None

    def _write(self) -> None:
        self._beat += 1
        line = json.dumps(self._me | {"phase": self._phase, "step": self._step, "beat": self._beat})
        write_atomically(self.beats / f"rank{self.rank}.json", lambda file: file.write(line.encode()))

    def _hold(self, rank: int, step: int) -> str:
        try:
            return self.holding(rank, step)
        except Exception as error:  # it is an aid; what hangs must be told without it
            return f"(what it holds cannot be told: {type(error).__name__})"

    def _look(self) -> list[Seen]:
        now, found = time.monotonic(), []
        for rank in range(self.world):
            told: Mapping[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):
                told = json.loads((self.beats / f"rank{rank}.json").read_text())
            before = self._changed.get(rank)
            if rank == self.rank or before is None or (told and told != before[0]):
                self._changed[rank] = before = (told, now)
            told = before[0]
            where = f"process {told.get('pid', '?')} on {told.get('host', '?')}"
            found.append(Seen(rank, *self._at(rank, told), now - before[1], where, ""))
        return found

    def _at(self, rank: int, told: Mapping[str, Any]) -> tuple[str, int]:
        """Phase and step of a rank: as its memory tells, which on this machine is this moment's; else as its last beat did."""
        beat = str(told.get("phase", "start")), int(told.get("step", 1))
        try:
            phase, step = (self.beats / f"rank{rank}.place").read_text().split()
            return max(beat, (phase, int(step)), key=lambda place: (place[1], PHASES.index(place[0])))
        except (OSError, ValueError):
            return beat

    def _end(self, reason: str) -> None:
        """Find the guilty, collect stacks, end the stopped, tell, leave."""
        try:
            with (self.beats / ASKED).open("x") as file:
                json.dump(self._me | {"reason": reason}, file)
        except FileExistsError:
            self._follow()
            return
        ranks = self._look()
        held = [replace(seen, holding=self._hold(seen.rank, seen.step)) for seen in ranks]
        guilty, sentence = diagnose(held, self.silence)
        self._dump()
        for seen in ranks:
            if seen.rank in guilty and seen.silent > self.silence:
                self._end_stopped(self._changed[seen.rank][0])
        deadline = time.monotonic() + _PATIENCE
        wanted = [self.folder / f"stacks.rank{rank}.txt" for rank in range(self.world)]
        while time.monotonic() < deadline and not all(path.is_file() and path.stat().st_size for path in wanted):
            time.sleep(0.05)
        stacks = f"stacks: {self.folder}/stacks.rank*.txt"
        self.leave(f"the run hangs: {reason}: {sentence}; {stacks}; the same command goes on from the last checkpoint")

    def _follow(self) -> None:
        self._dump()
        time.sleep(_PATIENCE)  # the one that asked tells the message first
        self.leave("")

    def _dump(self) -> None:
        if self._stacks is not None:
            self._stacks.write(
                f"rank {self.rank}, step {self._step}, {self._phase}: {self._hold(self.rank, self._step)}\n"
            )
            self._stacks.flush()
            faulthandler.dump_traceback(self._stacks, all_threads=True)
            self._stacks.flush()

    def _end_stopped(self, told: Mapping[str, Any]) -> None:
        """Stacks of a process that was stopped, then its end: no launcher's SIGTERM would reach it."""
        pid = int(told.get("pid", 0))
        if pid <= 0 or told.get("host") != self._me["host"] or _born(pid) != told.get("born"):
            return  # on another machine the launcher there must end it
        with contextlib.suppress(OSError):
            os.kill(pid, _STACKS)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.5)
            if _born(pid) == told.get("born"):
                os.kill(pid, signal.SIGKILL)


def _born(pid: int) -> str:
    """When a process started, in the system's ticks: a number that is given again is another process. Empty where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
