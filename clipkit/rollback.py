"""Going back to an earlier checkpoint inside a run."""

from __future__ import annotations

from pathlib import Path

from clipkit import distributed
from clipkit.callbacks.guard import CURE, NotFinite, RollBack, joined
from clipkit.callbacks.say import say
from clipkit.checkpoint import set_aside, steps, verify
from clipkit.guard import Guard


def turn_back(checkpoints: Path, back: RollBack, guard: Guard, most: int) -> Path:
    """The checkpoint to go on from; the guard leaves out the bad steps from now on. All ranks call it together.

    Args:
        checkpoints: ``RUN/checkpoints``.
        back: What was bad.
        guard: The module's.
        most: Roll-backs that a run may make.

    Raises:
        NotFinite: If there is none, or the run went back often enough.
    """
    if guard.rollbacks >= most:
        raise NotFinite(f"{back.reason}, after {guard.rollbacks} roll-backs (guard.rollbacks={most}). {CURE}")
    found = _newest(checkpoints, back.left_out[0]) or _newest(checkpoints, back.first)
    if found is None:
        raise NotFinite(
            f"{back.reason}; there is no checkpoint from before step {back.first} to go back to (checkpoint.every decides). {CURE}"
        )
    guard.rollbacks += 1
    first, last = max(back.left_out[0], int(found.name) + 1), back.left_out[1]
    guard.left_out = joined([*guard.left_out, (first, last)])
    say(
        f"warning: {back.reason}; roll-back {guard.rollbacks} of {most} to {found}, and the updates of steps {first} to {last} are left out"
    )
    return found


def _newest(checkpoints: Path, before: int) -> Path | None:
    """The newest checkpoint that verifies of a step below ``before``; all newer ones are put away and named.

    What is put away was written in or after the bad steps: a resumed run must not take it for the newest.
    """
    found: list[str] = []
    if distributed.rank() == 0:
        usable = [path for path in steps(checkpoints) if int(path.name) < before and verify(path) is None]
        newer = [path for path in steps(checkpoints) if usable and int(path.name) > int(usable[0].name)]
        for path in newer:
            say(
                f"warning: {path} is not usable, or was written in or after the bad steps: it is kept as {set_aside(path)}"
            )
        found = [str(path) for path in usable[:1]]
    found = distributed.gather_json(found)[0]
    return Path(found[0]) if found else None
