"""Where DATA lies: a path as it is; ``embedded:NAME``, ``sklearn:digits`` and sets on a server as copies in the cache."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from clipkit.data.embedded import resolve
from clipkit.data.urls import is_remote
from clipkit.evaluation.digits import write_digits
from clipkit.evaluation.remote import copy_remote, has_remote

EMBEDDED = "embedded:"
DIGITS = "sklearn:digits"


def local_place(data: str | Path, cache: Path) -> str | Path:
    """The file or folder that DATA stands for.

    Args:
        data: A path, ``embedded:NAME``, ``sklearn:digits``, or the URL of a set in CLIP_benchmark's layout.
        cache: Where copies are kept.

    Raises:
        ValueError: If the name stands for no evaluation set, or the copy cannot be made.
    """
    text = str(data)
    if text == DIGITS:
        return write_digits(cache)
    if text.startswith(EMBEDDED):
        found = resolve(text, cache)
        if not isinstance(found, Path):
            raise ValueError(
                f"{data} is a training set; evaluation sets are embedded:style_transfer, unseen, subgroup, retrieval"
            )
        return found
    return copy_remote(text, cache) if is_remote(text) else data


def is_there(data: str, cache: Path) -> bool:
    """Whether there is such a set, as far as that can be seen without reading it."""
    if data == DIGITS:
        return importlib.util.find_spec("sklearn") is not None
    if data.startswith(EMBEDDED):
        return True
    return has_remote(data, cache) if is_remote(data) else Path(data).expanduser().exists()


def joined(root: str, folder: str) -> str:
    """A set's place in a root: a folder, a URL, or a user's page of data sets on Hugging Face."""
    if root.startswith("https://huggingface.co/datasets/") and "/tree/" not in root:
        return f"{root.rstrip('/')}/{folder}/tree/main"
    return f"{root.rstrip('/')}/{folder}" if is_remote(root) else str(Path(root).expanduser() / folder)
