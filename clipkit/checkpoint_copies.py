"""Copies of checkpoints in another place, through fsspec: ``URL/STEP/`` as in ``RUN/checkpoints``, and the run's ``config.yaml``.

The manifest of a copy is sent last, after the sizes of the other files were looked at, and removed first: a copy that has one is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from clipkit.checkpoint import (
    INFO,
    MANIFEST,
    MODEL,
    STATE,
    CheckpointError,
    check_room,
    put_in_place,
    sync,
    verify,
)
from clipkit.config.checkpoint import check_copy_url
from clipkit.config.names import DISTRIBUTION
from clipkit.data.transport import within
from clipkit.data.urls import shown

CONFIG = "config.yaml"
FETCHED = "fetched.json"
"""Stands in ``RUN/checkpoints`` where a copy was fetched before the run began."""
DEADLINE = 1800.0  # seconds for one copy: a backend that hangs must not hold the run for ever
_FILES = (MODEL, STATE, INFO)


class Copies:
    """The copies under a URL.

    Args:
        url: ``s3://``, ``gs://`` or ``file://``; credentials are the backend's own (environment, role, keyfile).
        differs: Given a stored configuration, the lines on why it is another run's; none where it is this run's. Without it nothing is sent.

    Raises:
        ValueError: If the URL is none of those, or the scheme's package is not installed.
    """

    def __init__(self, url: str, differs: Callable[[Path], Sequence[str]] | None = None) -> None:
        from fsspec.core import url_to_fs

        check_copy_url(url)
        self.url = url.rstrip("/")
        self._differs = differs
        self._claimed = self._named = False
        try:
            own = {"auto_mkdir": True} if url.startswith("file:") else {}  # the others make folders by themselves
            self._files, self._root = url_to_fs(self.url, skip_instance_cache=True, **own)
        except ImportError as error:
            scheme = url.partition("://")[0]
            raise ValueError(
                f"{url}: {scheme}:// needs another package; pip install '{DISTRIBUTION}[remote]'"
            ) from error

    def steps(self) -> list[int]:
        """Steps of the copies that are complete, newest first."""
        return [step for step, whole in self._present() if whole]

    def claim(self) -> None:
        """Make sure that what stands there is of this run: copies of another would be taken for its own, and removed.

        Raises:
            ValueError: If it is another run's.
        """
        if self._claimed:
            return
        assert self._differs is not None
        different = None
        with tempfile.TemporaryDirectory(prefix="clipkit-") as folder:
            stored = Path(folder) / CONFIG
            try:
                self._files.get_file(f"{self._root}/{CONFIG}", str(stored))
            except FileNotFoundError:
                different = ["there are checkpoints, but no word of whose"] if self._present() else []
            else:
                different = list(self._differs(stored))
        if different:
            listed = "\n  ".join(different)
            raise ValueError(
                f"checkpoint.copy_to: {self.url} holds copies of another run; name another place. "
                f"What differs (there -> here):\n  {listed}"
            )
        self._claimed = True

    def follow(self, folder: Path, chosen: Callable[[Iterable[int]], set[int]]) -> None:
        """Copy a new checkpoint, then those of its neighbours that are not there yet; then remove older copies by the rule of the run.

        Args:
            folder: The new checkpoint.
            chosen: Which of the steps at hand stay.

        Raises:
            Exception: Whatever the backend raises. What was sent of a checkpoint has no manifest then.
            TimeoutError: If it takes longer than ``DEADLINE`` seconds.
        """
        given_up = threading.Event()
        try:
            within(DEADLINE, lambda: self._follow(folder, chosen, given_up))
        finally:
            given_up.set()

    def _follow(self, folder: Path, chosen: Callable[[Iterable[int]], set[int]], given_up: threading.Event) -> None:
        self._put(folder, given_up)
        newest = int(folder.name)
        there = {step for step in self.steps() if step <= newest}  # newer ones are of a future that was left
        for path in sorted(folder.parent.iterdir()):
            if path.name.isdigit() and int(path.name) < newest and int(path.name) not in there and not verify(path):
                self._put(path, given_up)
                there.add(int(path.name))
        keep = chosen(there)
        for step, whole in self._present():
            if step <= newest and (step not in keep or not whole):
                self._remove(step, given_up)

    def newest(self, checkpoints: Path) -> tuple[Path | None, list[str]]:
        """Fetch the newest copy that verifies.

        Returns:
            Its folder under ``checkpoints`` (None if there is none), and a line on each newer one that does not verify.
        """
        passed_over: list[str] = []
        for step in self.steps():
            try:
                return self.get(step, checkpoints), passed_over
            except CheckpointError as error:
                passed_over.append(str(error))
        return None, passed_over

    def get(self, step: int, checkpoints: Path) -> Path:
        """Fetch a copy into ``checkpoints/STEP``, which is whole or not there; one that is there already is not fetched again.

        Raises:
            CheckpointError: If it is incomplete or altered.
            OSError: If the disk here refuses.
        """
        source, folder = f"{self._root}/{step}", checkpoints / str(step)
        temporary = checkpoints / f".{step}.writing-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        (checkpoints / FETCHED).write_text(json.dumps({"from": self.url}) + "\n")
        try:
            self._get(source, temporary, MANIFEST)
            same = (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == (
                temporary / MANIFEST
            ).read_bytes()
            if same and verify(folder) is None:
                return folder
            check_room(checkpoints, sum(int(self._files.info(f"{source}/{name}")["size"]) for name in _FILES))
            for name in _FILES:
                self._get(source, temporary, name)
            if reason := verify(temporary):
                raise CheckpointError(f"{self.url}/{step}: {reason}")
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            put_in_place(temporary, folder)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.url}/{step}: a file is missing ({shown(str(error))})") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _present(self) -> list[tuple[int, bool]]:
        """The steps that have a folder, newest first, and whether it has a manifest."""
        self._files.invalidate_cache()
        try:
            names = [str(path).rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []
        found = sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)
        return [(step, bool(self._files.exists(f"{self._root}/{step}/{MANIFEST}"))) for step in found]

    def _put(self, folder: Path, given_up: threading.Event) -> None:
        self.claim()
        if not self._named:
            self._send(folder.parent.parent / CONFIG, f"{self._root}/{CONFIG}")
            self._named = True
        target = f"{self._root}/{folder.name}"
        if self._files.exists(f"{target}/{MANIFEST}"):
            self._files.rm_file(f"{target}/{MANIFEST}")
        for name in (*_FILES, MANIFEST):
            if given_up.is_set():
                return
            self._send(folder / name, f"{target}/{name}")

    def _send(self, path: Path, target: str) -> None:
        self._files.put_file(str(path), target)
        self._files.invalidate_cache()
        wanted, found = path.stat().st_size, int(self._files.info(target)["size"])
        if wanted != found:
            self._files.rm_file(target)
            raise OSError(f"{path.name} has {wanted:,} bytes and its copy {found:,}")

    def _get(self, source: str, folder: Path, name: str) -> None:
        self._files.get_file(f"{source}/{name}", str(folder / name))

    def _remove(self, step: int, given_up: threading.Event) -> None:
        if given_up.is_set():
            return
        folder = f"{self._root}/{step}"
        if self._files.exists(f"{folder}/{MANIFEST}"):
            self._files.rm_file(f"{folder}/{MANIFEST}")
        self._files.rm(folder, recursive=True)


def place_of(url: str) -> tuple[str, int | None]:
    """The place of copies and the step in it that a URL names; None for the newest.

    >>> place_of("s3://bucket/run/4000"), place_of("s3://bucket/run/")
    (('s3://bucket/run', 4000), ('s3://bucket/run', None))
    """
    head, _, tail = url.rstrip("/").rpartition("/")
    return (
        (head, int(tail)) if tail.isascii() and tail.isdigit() and not head.endswith("/") else (url.rstrip("/"), None)
    )


def reason(error: BaseException) -> str:
    """What a backend said, without anything secret."""
    return shown(f"{type(error).__name__}: {error}")


def refused(url: str, error: Any) -> ValueError:
    """The words for a place that cannot be read."""
    return ValueError(
        f"{shown(url)}: cannot be read, {reason(error)}; check the address, the network and your rights to it"
    )
