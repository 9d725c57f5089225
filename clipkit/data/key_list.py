"""Lists of samples to keep or to leave out: keys in a text file, or DataComp's uids in a ``.npy``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.filters import Mask

Words = NDArray[np.uint64]


def key_words(keys: Iterable[bytes]) -> tuple[Words, Words]:
    """128-bit hashes of keys, as two arrays of 64 bits."""
    digests = b"".join(hashlib.blake2b(key, digest_size=16).digest() for key in keys)
    words = np.frombuffer(digests, "<u8").reshape(-1, 2)
    return words[:, 0], words[:, 1]


class KeyList:
    """A list of keys, 16 bytes each in memory, read when it is first searched.

    Args:
        path: A text file of one key a line, or a ``.npy`` of pairs of unsigned 64-bit integers (dtype ``u8,u8``), the two
            halves of the ``uid`` in the samples' JSON, as the subset files of DataComp hold them.

    Raises:
        ValueError: If there is no such file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise ValueError(f"{path}: there is no such list of keys; check the path")
        self.of_uids = self.path.suffix == ".npy"

    @cached_property
    def digest(self) -> str:
        """Tells lists of other content apart."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    @cached_property
    def words(self) -> tuple[Words, Words]:
        """Both halves of every entry, sorted by the first, then by the second.

        Raises:
            ValueError: If the file holds no key, or is no list.
        """
        high, low = self._uids() if self.of_uids else self._keys()
        if not len(high):
            raise ValueError(f"{self.path}: holds no key")
        if not (high[:-1] < high[1:]).all():
            order = np.lexsort((low, high))
            high, low = high[order], low[order]
        return high, low

    def _uids(self) -> tuple[Words, Words]:
        try:
            held = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{self.path}: no list of uids ({error})") from error
        if held.dtype.names is None or [held.dtype[name] for name in held.dtype.names] != [np.dtype("<u8")] * 2:
            raise ValueError(
                f"{self.path}: dtype {held.dtype}; a list of uids is of pairs of unsigned 64-bit integers, 'u8,u8'"
            )
        high, low = (np.ascontiguousarray(held[name]) for name in held.dtype.names)
        return high.ravel(), low.ravel()

    def _keys(self) -> tuple[Words, Words]:
        with self.path.open("rb") as file:
            return key_words(key for line in file if (key := line.strip(b"\r\n")))

    def holds(self, high: Words, low: Words) -> Mask:
        """Which entries (N,) are in the list.

        Args:
            high: First halves (N,).
            low: Second halves (N,).
        """
        firsts, seconds = self.words
        at, end = np.searchsorted(firsts, high, "left"), np.searchsorted(firsts, high, "right")
        found = np.zeros(len(high), bool)
        while (open_ := at < end).any():  # once, unless entries share their first half
            found[open_] |= seconds[at[open_]] == low[open_]
            at = at + 1
        return found
