"""Where DATA lies: a path as it is, ``embedded:NAME`` and ``sklearn:digits`` in the cache."""

from __future__ import annotations

from pathlib import Path

from clipkit.data.embedded import resolve

EMBEDDED = "embedded:"


def local_place(data: str | Path, cache: Path) -> str | Path:
    """The file or folder that DATA stands for.

    Args:
        data: A path, or ``embedded:NAME``.
        cache: Where embedded data are kept.

    Raises:
        ValueError: If the name stands for no evaluation set.
    """
    if not str(data).startswith(EMBEDDED):
        return data
    found = resolve(str(data), cache)
    if not isinstance(found, Path):
        raise ValueError(
            f"{data} is a training set; evaluation sets are embedded:style_transfer, unseen, subgroup, retrieval"
        )
    return found
