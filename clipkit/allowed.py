"""What only the person who starts a run may allow: a configuration, which may come from a stranger, cannot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Allowed:
    """What is allowed beyond the usual.

    Args:
        mismatch: Going on from a checkpoint of other data or another seed, at the beginning of these.
        pipe: Running the program of a ``pipe:`` among the shards.
    """

    mismatch: bool = False
    pipe: bool = False

    def flags(self) -> list[str]:
        """The command line's words for it."""
        return ["--allow-mismatch"] * self.mismatch + ["--allow-pipe"] * self.pipe
