"""``samples.rankR.jsonl``: the keys of every batch that was trained on, in order.

A plan that began after step N of the run (``--allow-mismatch``) has a file of its own, ``samples.rankR.after_N.jsonl``: its positions
begin at 0 again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from clipkit.data.atomic import write_atomically


class Trace:
    """One rank's trace file; a resumed run goes on where the checkpoint was.

    Args:
        folder: The run folder.
        rank: This rank.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._file: TextIO | None = None
        self.begin_plan(0)

    def begin_plan(self, earlier_steps: int) -> None:
        """Write to the file of the plan that began after so many steps."""
        self.close()
        suffix = f".after_{earlier_steps}" if earlier_steps else ""
        self.path = self._folder / f"samples.rank{self._rank}{suffix}.jsonl"

    def _open(self, position: int) -> TextIO:
        """Keep the batches before the position; what a killed run trained after its checkpoint is trained again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = []
            for line in self.path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n") or json.loads(line)["position"] >= position:
                    break
                kept.append(line)
            write_atomically(self.path, lambda file: file.writelines(kept))
        return self.path.open("a", encoding="utf-8")

    def write(self, batch: dict[str, Any]) -> None:
        """Add a batch: one object a line, flushed at once."""
        position = int(batch["position"])
        if self._file is None:
            self._file = self._open(position)
        self._file.write(json.dumps({"position": position, "keys": batch["key"]}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
