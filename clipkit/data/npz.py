"""Sidecars as numpy writes them, ``.npz``, which may come from a stranger."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_ARRAYS = 4096


def read_npz(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, NDArray[Any]]:
    """The arrays of a file that ``np.savez`` wrote.

    ``np.load`` allocates what a header claims before it reads; here each array must lie in the file as it is, unpacked and at the size
    that its header says, so that a file never takes more memory than it has bytes.

    Args:
        path: The file.
        wanted: Which arrays are read, by name.

    Raises:
        OSError: If there is none.
        ValueError: If it is damaged, packed, or claims more than it holds; nothing in it is unpickled.
    """
    with path.open("rb") as file:
        most = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                return _arrays(archive, most, wanted)
        except (
            Exception
        ) as error:  # zipfile raises what its decoders do: zlib.error, EOFError, NotImplementedError, OSError, ...
            raise ValueError(f"{path}: damaged ({error})") from error


def _arrays(archive: zipfile.ZipFile, most: int, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    entries = archive.infolist()
    held = sum(entry.file_size for entry in entries)
    if len(entries) > _MOST_ARRAYS or held > most:
        raise ValueError(f"{len(entries)} arrays of {held:,} bytes in a file of {most:,}")
    names = [(entry, entry.filename.removesuffix(".npy")) for entry in entries]
    return {name: _array(archive.read(entry), name) for entry, name in names if wanted(name)}


def _array(data: bytes, name: str) -> NDArray[Any]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name}: .npy of version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "biufS" or (by_columns and len(shape) > 1):
        raise ValueError(f"{name}: {dtype} of shape {shape}")
    if prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name}: {dtype} of shape {shape} in {len(data) - file.tell():,} bytes")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()
