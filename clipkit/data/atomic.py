"""Write a file so that it is there whole or not at all, also after a crash."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write to a temporary file in the same folder, fsync it, and rename it over ``path``.

    Args:
        path: The file to make or to replace.
        write: Writes the content to the open file that it is given.

    Raises:
        OSError: If the folder cannot be written; no temporary file stays behind.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; others of a cluster read it too
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
