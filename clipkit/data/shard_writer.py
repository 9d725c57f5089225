"""Samples into numbered tars of a fixed size, going on after a kill from the last state that was written down."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

_SECONDS = 1 << 30  # between 1970 and 2004: times that any file system can hold


class ShardWriter:
    """Writes one split.

    A tar holds nothing of this machine or this minute, so the same samples give the same bytes.

    Args:
        folder: Where the tars go; made if it is missing.
        shard_size: Samples of a tar.
        name: How the tar of a number is called, such as ``{:05d}.tar``.
        state: What ``state()`` gave at an earlier time; what was written after it is cut off.

    Raises:
        ValueError: If what stands in the folder is not what the state says.
    """

    def __init__(self, folder: Path, shard_size: int, name: str, state: Mapping[str, Any] | None = None) -> None:
        self.folder, self.shard_size, self.name = folder, shard_size, name
        self.samples = 0
        self.finished: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if state is not None:
            self._take_up(state)

    @property
    def shards(self) -> int:
        """Tars begun."""
        return len(self.finished) + (self._tar is not None)

    def write(self, stem: str, members: Mapping[str, bytes]) -> bool:
        """Write a sample under the next key; says whether that filled a tar."""
        key = f"{self.samples:08d}" + (f"-{stem}" if stem else "")
        if self._tar is None:
            self._open(self._path(len(self.finished)), "wb")
        assert self._tar is not None
        for extension in sorted(members):
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.mode = len(members[extension]), 0o644
            self._tar.addfile(info, io.BytesIO(members[extension]))
        self.samples += 1
        if self.samples % self.shard_size:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Finish the tar that is open, if one is."""
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._tar = self._file = None
        path = self._path(len(self.finished))
        digest = _digest(path)
        # its sidecar names the time of change: that follows from the content too
        seconds = int.from_bytes(digest[:8], "big") % _SECONDS + 1
        os.utime(path, ns=(seconds * 10**9, seconds * 10**9))
        self.finished.append({"size": path.stat().st_size, "sha256": digest.hex()})

    def state(self) -> dict[str, Any]:
        """What to give to a later writer, JSON types; all of it is on the disk."""
        open_size, open_digest = 0, ""
        if self._tar is not None and self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            open_size, open_digest = self._tar.offset, _digest(self._path(len(self.finished))).hex()
        return {"samples": self.samples, "finished": self.finished, "open": open_size, "open_sha256": open_digest}

    def _path(self, number: int) -> Path:
        return self.folder / self.name.format(number)

    def _open(self, path: Path, mode: str) -> None:
        self._file = path.open(mode)  # type: ignore[assignment]
        assert self._file is not None
        self._file.seek(0, os.SEEK_END)
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)

    def _take_up(self, state: Mapping[str, Any]) -> None:
        for number, shard in enumerate(state["finished"]):
            path = self._path(number)
            if not path.is_file() or _digest(path).hex() != shard["sha256"]:
                raise ValueError(f"{path} is not what was written there")
        self.samples, self.finished = int(state["samples"]), list(state["finished"])
        path = self._path(len(self.finished))
        if state["open"]:
            if not path.is_file() or path.stat().st_size < state["open"]:
                raise ValueError(f"{path} is not what was written there")
            os.truncate(path, state["open"])
            if _digest(path).hex() != state["open_sha256"]:
                raise ValueError(f"{path} is not what was written there")
            self._open(path, "r+b")


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
