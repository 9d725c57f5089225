"""``--allow-mismatch``: a run goes on although its data are others than those of the checkpoint."""

from __future__ import annotations

from pathlib import Path

from clipkit.callbacks.say import say
from clipkit.data.datamodule import ShardDataModule
from clipkit.run_folder import data_state


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
