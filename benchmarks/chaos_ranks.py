"""Ranks for `chaos.py`: forked from this process, which has imported all, or started cold by the command line; and what they leave behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chaos_faults import Fault, install
from forked import fit_as_rank, free_port

WORLD = 2
TOKEN = "CLIPKIT_CHAOS"
"""Names this benchmark's cold processes in their environment."""


class Launch:
    """One start of the run: its ranks, and all processes that stem from them.

    Args:
        folder: For logs, markers and process ids.
        environment: Beside the inherited one.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True)
        self.folder, self.environment = folder, environment
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}
        self.sessions: set[int] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "log"

    def fork(self, arguments: list[str], fault: Fault | None, start: int, edges: Callable[[int, int], bool]) -> None:
        """Ranks as torchrun starts them, but for the imports, which are done."""
        port = free_port()
        gc.freeze()
        for rank in range(WORLD):
            pid = os.fork()
            if pid == 0:
                self._become(rank, port, arguments, fault, start, edges)
            self.pids.append(pid)
        self.sessions.update(self.pids)
        (self.folder / "pids.json").write_text(json.dumps(self.pids))

    def _become(
        self,
        rank: int,
        port: int,
        arguments: list[str],
        fault: Fault | None,
        start: int,
        edges: Callable[[int, int], bool],
    ) -> None:
        os.setsid()
        # a launcher gives its ranks a folder of their own and takes it away; here it goes with the folder of the launch
        tempfile.tempdir = str(self.folder / "tmp")
        Path(tempfile.tempdir).mkdir(exist_ok=True)
        os.environ.update(self.environment | {"TORCHELASTIC_RUN_ID": "chaos"})
        trap = partial(install, self.folder, fault, rank, start, edges)
        fit_as_rank(arguments, self.log, rank, world=WORLD, port=port, before=trap)

    def cold(self, arguments: list[str]) -> None:
        """The command line as a user types it; ``pids`` are found later."""
        environment = os.environ | self.environment | {TOKEN: str(self.folder)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "clipkit", *arguments],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.sessions.add(self.process.pid)

    def find_ranks(self) -> list[int]:
        """The ranks' process ids; of a cold start as soon as both are there, else empty."""
        if self.process is not None and not self.pids:
            found: dict[int, int] = {}
            for pid in processes():
                known = environment_of(pid)
                if known.get(TOKEN) == str(self.folder):
                    self.sessions.add(session_of(pid))
                    if "LOCAL_RANK" in known and session_of(pid) == pid:
                        found[int(known["RANK"])] = pid
            self.pids = [found[rank] for rank in range(WORLD)] if len(found) == WORLD else []
        return self.pids

    def ended(self) -> int | None:
        """The code of the first rank that ended (of the launcher, for a cold start), None while all run; a signal is negative."""
        if self.process is not None:
            return self.process.poll()
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return min(self.codes.values(), default=None)

    def wait(self, seconds: float) -> bool:
        """Whether all ranks are gone within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.ended()
            gone = self.process.poll() is not None if self.process is not None else len(self.codes) == len(self.pids)
            if gone:
                return True
            time.sleep(0.02)
        return False

    def alive(self) -> list[int]:
        """Processes of this launch that are still there."""
        found = []
        for pid in processes():
            mine = session_of(pid) in self.sessions or environment_of(pid).get(TOKEN) == str(self.folder)
            if mine and state_of(pid) not in ("Z", "?"):
                found.append(pid)
        return found

    def kill(self) -> None:
        """End whatever is left."""
        for pid in self.alive():
            signal_to(pid, signal.SIGKILL)
        self.wait(5)


def signal_to(pid: int, number: int) -> bool:
    """Send a signal; whether there was somebody."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def processes() -> list[int]:
    """All process ids but this one's."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def session_of(pid: int) -> int:
    """Session of a process, -1 if it is gone."""
    return int(_stat(pid, 3, "-1"))


def state_of(pid: int) -> str:
    """One letter, as ``ps`` shows it; ? if it is gone."""
    return _stat(pid, 0, "?")


def _stat(pid: int, field: int, missing: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field]
    except (OSError, IndexError):
        return missing


def environment_of(pid: int) -> dict[str, str]:
    """What a process was started with."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in raw.decode(errors="replace").split("\0") if "=" in part)


def shared_memory() -> set[str]:
    """Names in /dev/shm that no process has open or mapped: what was left behind."""
    names = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    for pid in [*processes(), os.getpid()]:
        try:
            held = Path(f"/proc/{pid}/maps").read_text()
            held += "\n".join(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
        names = {name for name in names if f"/dev/shm/{name}" not in held}
    return names
