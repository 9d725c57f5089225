"""A run that goes on from a checkpoint of another configuration: of other data (``--allow-mismatch``), or named by ``--resume``."""

from __future__ import annotations

from pathlib import Path

from clipkit.callbacks.say import say
from clipkit.config import RunConfig
from clipkit.data.datamodule import ShardDataModule
from clipkit.run_folder import CONFIG, data_state, differences

_THE_CHECKPOINTS = ("optim.weight_decay:", "optim.betas:", "optim.eps:")
"""Keys that stand in the optimiser's state."""


def say_branch(found: Path, config: RunConfig) -> None:
    """Say in what the run of a named checkpoint differs from this one, and which of it has no effect."""
    stored = found.resolve().parent.parent / CONFIG
    different = differences(stored, config) if stored.is_file() else []
    if different:
        listed = "\n  ".join(
            f"{line} (the checkpoint's is taken)" if line.startswith(_THE_CHECKPOINTS) else line for line in different
        )
        say(f"warning: {found} is of a run of another configuration (there -> here):\n  {listed}")


def say_mismatch(data: ShardDataModule, found: Path, changed: list[str]) -> None:
    """Refuse other data before anything is written, or say what goes on with them and what begins anew.

    Args:
        data: The run's data.
        found: The checkpoint to go on from.
        changed: A line on each key of the configuration that differs.

    Raises:
        ValueError: If the checkpoint's data are others and that is not allowed.
    """
    state = data_state(found)
    differences = data.differences(state)
    if differences and not data.allow_mismatch:
        data.load_state_dict(state)  # says what differs, and refuses
    for line in changed:
        say(f"warning: --allow-mismatch: {line}")
    if differences:
        listed = "\n  ".join(differences)
        say(
            f"warning: --allow-mismatch: {found} was made with other data. Weights, optimiser and step go on; the data begin "
            f"at position 0 of a new plan, and samples may be seen again. What differs:\n  {listed}"
        )
        if state["batch_size"] != data.batch_size:
            say(
                "warning: --allow-mismatch: `samples` in metrics.jsonl and the schedule count every step at the new batch size"
            )
