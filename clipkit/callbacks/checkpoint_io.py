"""Lightning's checkpoint dictionary becomes clipkit's folder and comes back from it; a disk that refuses is counted."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO

from clipkit.callbacks.background import Background
from clipkit.callbacks.say import say
from clipkit.checkpoint import Checkpoint, read_checkpoint, remove_checkpoint, snapshot, write_checkpoint

_IN_INFO = ("epoch", "global_step", "pytorch-lightning_version", "loops", "ShardDataModule", "owed_evaluation", "guard")


class CheckpointLost(RuntimeError):
    """The last checkpoint of a run could not be written."""


class FolderCheckpointIO(CheckpointIO):
    """Checkpoint folders, written at once or beside the training, one at a time.

    Args:
        info: What else ``state.json`` holds: the model's configuration, fingerprints.
        background: Whether a thread writes them. It writes copies: the weights may change meanwhile.
    """

    def __init__(self, info: Mapping[str, Any], *, background: bool = False) -> None:
        self.info = dict(info)
        self.failures = 0
        self.lost: Path | None = None
        """The last checkpoint, if that is one that could not be written."""
        self._work = Background(thread=background)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the folder; a disk that refuses costs this checkpoint, not the run nor the last good one.

        Args:
            checkpoint: Lightning's dictionary.
            path: The folder.
            storage_options: What to call once it is whole, or None.
        """
        known = {name: checkpoint[name] for name in _IN_INFO if name in checkpoint}
        rest = {name: value for name, value in checkpoint.items() if name not in known and name != "state_dict"}
        versions = {"torch": torch.__version__, "lightning": lightning.__version__, "python": platform.python_version()}
        info = self.info | {"step": checkpoint["global_step"], "versions": versions, "lightning": known}
        held = Checkpoint(checkpoint["state_dict"], rest, info)
        self.wait()  # before memory for another copy is taken
        if self._work.thread:
            held = snapshot(held)

        def write() -> None:
            if self._write(Path(path), held) and storage_options is not None:
                storage_options()

        self._work.start(write)

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk, or counted among the failures."""
        self._work.wait()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder that verifies."""
        stored = read_checkpoint(Path(path))
        return {**stored.state, **stored.info["lightning"], "state_dict": stored.model}

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a folder."""
        remove_checkpoint(Path(path))

    def _write(self, folder: Path, held: Checkpoint) -> bool:
        try:
            write_checkpoint(folder, model=held.model, state=held.state, info=held.info)
        except OSError as error:
            self.failures += 1
            self.lost = folder
            say(
                f"warning: checkpoint {folder} could not be written ({error}); training goes on, {self.failures} failed so far, "
                "the last good one stays"
            )
            return False
        self.lost = None
        return True
