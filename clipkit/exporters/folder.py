"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def require_free(out: Path, *, force: bool) -> None:
    """Whether a folder may be made.

    Raises:
        ValueError: If it or what should hold it is a file, or it holds files and ``force`` is not set.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file; name a folder to export into")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ValueError(f"{out} is not empty; name another folder, or replace it with force=True (--force)")


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Fill a temporary sibling of ``out``; it takes that name when the block ends well and vanishes when it does not.

    Args:
        out: The folder to make.
        force: Whether one that holds files may be replaced; it stays untouched until the new one is complete.

    Yields:
        The folder to fill.

    Raises:
        ValueError: If ``out`` is a file, or holds files and ``force`` is not set.
    """
    require_free(out, force=force)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    fresh, old = out.with_name(f".{out.name}.new-{mark}"), out.with_name(f".{out.name}.old-{mark}")
    fresh.mkdir()
    try:
        yield fresh
        if out.is_dir():
            os.rename(out, old)
        os.rename(fresh, out)
    finally:
        if old.is_dir() and not out.is_dir():  # the second rename failed: put back what was there
            os.rename(old, out)
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)
