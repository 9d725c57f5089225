"""Remote shards on this machine: fetched once for all its processes, within a budget of bytes, the least recently used leave.

Eviction only unlinks: a process that has the file open reads on, and lets go of it when it next opens another shard
(``ShardReader``), so that the disk holds what the budget says. When a shard was last used is its access time, set by
whoever opens it and by the look-ahead, which knows what the plan needs next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clipkit.config.json_text import parse_json
from clipkit.data.atomic import write_atomically
from clipkit.data.fetch import Policy, Version, download
from clipkit.data.index import ShardIndex, load_index, sidecar_path
from clipkit.data.tar import ShardError
from clipkit.data.urls import local_names, shown

_OWN: dict[str, threading.Lock] = {}  # a record lock does not keep out another thread of its own process
_NOTES = (".json", ".lock")  # small, and kept when their shard leaves
_PART = ".part"


@dataclass(frozen=True)
class OpenedShard:
    """A shard on this machine.

    Args:
        path: Its file.
        fd: Open for reading; the receiver closes it.
        index: Its samples.
    """

    path: str
    fd: int
    index: ShardIndex


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock against every thread and process of the machine; a process that dies lets go of it.

    Record locks, not ``flock``: a loader worker forked meanwhile would inherit an ``flock`` and hold it for its life.

    Raises:
        TimeoutError: If another holds it for so long.
    """
    end = time.monotonic() + seconds
    own = _OWN.setdefault(str(path), threading.Lock())
    if not own.acquire(timeout=seconds):
        raise TimeoutError(f"{path}: held by another thread for {seconds:g} s")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while True:
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        raise
                if time.monotonic() > end:
                    raise TimeoutError(f"{path}: held by another process for {seconds:g} s")
                time.sleep(0.02)
            yield
        finally:
            os.close(fd)
    finally:
        own.release()


os.register_at_fork(after_in_child=_OWN.clear)  # a thread that held one does not exist in the child


class NodeCache:
    """The shards of remote sources that are on this machine.

    Args:
        folder: The cache folder; shards lie in its folder ``shards``.
        budget: Bytes that they may take together; None is half of what is free there, or theirs already.
        policy: How patiently a shard is fetched.

    Raises:
        ValueError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, budget: int | None = None, policy: Policy | None = None) -> None:
        self.folder = folder / "shards"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{self.folder} cannot be made ({error.strerror}); name another folder by data.cache"
            ) from error
        self.policy = policy or Policy()
        self.budget = budget if budget is not None else (shutil.disk_usage(self.folder).free + self.held()) // 2

    def path(self, url: str) -> Path:
        """Where a shard is kept."""
        return self.folder.joinpath(*local_names(url))

    def size(self, url: str) -> int | None:
        """Bytes of a shard that was fetched once, None for another."""
        version = _version(_beside(self.path(url), ".json"))
        return version.size if version else None

    def held(self) -> int:
        """Bytes that all shards here take."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use (of an unfinished one, last growth), bytes and path of every shard, sidecar and unfinished shard."""
        found = []
        with os.scandir(self.folder) as folders:
            names = [folder.path for folder in folders if folder.is_dir()]
        for name in names:
            with os.scandir(name) as files:
                for file in files:
                    if not file.name.startswith(".") and not file.name.endswith(_NOTES):
                        with contextlib.suppress(FileNotFoundError):
                            status = file.stat()
                            used = status.st_mtime if file.name.endswith(_PART) else status.st_atime
                            found.append((used, status.st_size, Path(file.path)))
        return found

    def touch(self, url: str) -> bool:
        """Say that a shard is in use; returns whether it is here."""
        path = self.path(url)
        try:
            # the time of change stays: the sidecar knows its tar by it
            os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))
        except FileNotFoundError:
            return False
        return True

    def discard(self, url: str) -> None:
        """Remove a shard."""
        _unlink(self.path(url))

    def fetch(self, url: str) -> Path:
        """Bring a shard here unless it is; one process of the machine fetches, others wait for it.

        Raises:
            ShardError: If it cannot be had, or is not what it was when it was fetched before.
        """
        path = self.path(url)
        if self.touch(url):
            return path
        path.parent.mkdir(exist_ok=True)
        try:
            with locked(_beside(path, ".lock"), 2 * self.policy.deadline):
                if not self.touch(url):
                    self._fetch(url, path)
        except TimeoutError as error:
            raise ShardError(f"{shown(url)}: {error}; end the process that stands still", shown(url)) from error
        except OSError as error:
            text = f"{shown(url)}: cannot be kept in {self.folder} ({error.strerror}); free space there, or lower data.cache_size"
            raise ShardError(text, shown(url)) from error
        return path

    def _fetch(self, url: str, path: Path) -> None:
        part, note = path.with_name(path.name + _PART), _beside(path, ".json")
        before = _version(note)

        def begin(version: Version) -> BinaryIO:
            _check_same(url, before, version, path.parent)
            return self._begin(url, part, version.size)

        try:
            version = download(url, begin, self.policy)
            _check_same(url, before, version, path.parent)
            if version.size > self.budget:
                raise self._too_large(url, version.size)
            told = json.dumps({"url": shown(url), **version._asdict()}).encode()
            write_atomically(note, lambda file: file.write(told))
            os.replace(part, path)
            self.touch(url)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._make_room(0)  # where the size was not announced

    def _begin(self, url: str, part: Path, size: int) -> BinaryIO:
        """An empty file that already counts as ``size`` bytes."""
        if size > self.budget:
            raise self._too_large(url, size)
        with locked(self.folder / ".room.lock", self.policy.timeout):
            part.unlink(missing_ok=True)
            self._evict(size)
            file = part.open("wb")
            file.truncate(size)
        return file

    def _too_large(self, url: str, size: int) -> ShardError:
        text = f"{shown(url)}: has {size:,} bytes, the cache of remote shards at most {self.budget:,}; raise data.cache_size"
        return ShardError(text, shown(url))

    def _make_room(self, size: int) -> None:
        with locked(self.folder / ".room.lock", self.policy.timeout):
            self._evict(size)

    def _evict(self, size: int) -> None:
        """Unlink the least recently used until ``size`` more bytes fit.

        Raises:
            OSError: If all that is here is being fetched.
        """
        files = sorted(self._files())
        over = sum(held for _, held, _ in files) + size - self.budget
        sidecars = {path: held for _, held, path in files if path.name.endswith(".idx.npz")}
        stale = time.time() - self.policy.deadline
        for used, held, path in files:
            if over <= 0:
                return
            if path in sidecars or (path.suffix == _PART and used > stale):
                continue
            _unlink(path)
            over -= held + sidecars.get(sidecar_path(path), 0)
        if over > 0 and size:
            raise OSError(errno.EAGAIN, f"other shards on their way fill the cache of {self.budget:,} bytes")

    def open(self, url: str) -> OpenedShard:
        """A shard, fetched if need be, open and with its index.

        Raises:
            ShardError: If it cannot be had, or is no good tar: then it is not kept.
        """
        for _ in range(8):  # between two of these lines another process may evict it
            path = self.fetch(url)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                return OpenedShard(str(path), fd, load_index(path))
            except ShardError as error:
                os.close(fd)
                if path.exists():
                    self.discard(url)
                    raise ShardError(str(error).replace(str(path), shown(url)), shown(url), error.offset) from error
        raise ShardError(f"{shown(url)}: leaves the cache as soon as it is there; raise data.cache_size", shown(url))


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
    sidecar_path(path).unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _version(note: Path) -> Version | None:
    try:
        told = parse_json(note.read_text())
        return Version(int(told["size"]), told["etag"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_same(url: str, before: Version | None, now: Version, folder: Path) -> None:
    """A weak etag may differ between the servers of one host; a strong one or the size is another content."""
    if before is None:
        return
    strong = [tag for tag in (before.etag, now.etag) if tag and not tag.startswith("W/")]
    if (now.size and before.size != now.size) or (len(strong) == 2 and strong[0] != strong[1]):
        text = (
            f"{shown(url)}: the remote shard changed since it was first fetched ({before.size:,} bytes, etag {before.etag}; now "
            f"{now.size:,}, {now.etag}); restore it, or, if that was meant, delete {folder} and start a new run"
        )
        raise ShardError(text, shown(url))
