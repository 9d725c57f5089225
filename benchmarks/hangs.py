"""A rank that is stopped in the middle of a run of two: is it named in time, with all stacks, and is nobody left?"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from chaos_ranks import WORLD, Launch  # noqa: E402
from chaos_world import Progress, edges, make_shards, write_config  # noqa: E402

STEP, SLACK = 6, 10
"""Seconds of ``trainer.timeouts.step``, and until the message beyond them."""


def stopped_rank_named(quick: bool) -> list[bool]:
    """Stop each rank of a real run with SIGSTOP at a random step, once (not ``quick``: ten times).

    Returns:
        For each stop, whether the rank was named within the time-out and ten seconds, with its step, all ranks' stacks were written,
        the code was 1, and no process was left ten seconds later.
    """
    found = []
    for number in range(WORLD if quick else 10 * WORLD):
        with tempfile.TemporaryDirectory(prefix="hangs-") as folder:
            found.append(_stop(Path(folder), number % WORLD, random.Random(time.time_ns())))
    return found


def _stop(root: Path, victim: int, rng: random.Random) -> bool:
    make_shards(root / "shards")
    config = write_config(root, str(root / "shards"), 1000)
    launch = Launch(root / "launch", {})
    progress = Progress(root / "run")
    launch.fork(["fit", str(config), f"run={root / 'run'}", f"trainer.timeouts.step={STEP}s"], None, 0, edges)
    after, deadline = rng.randrange(2, 12), time.monotonic() + 300
    while progress.look() < after and launch.ended() is None and time.monotonic() < deadline:
        time.sleep(0.004)
    time.sleep(rng.random() / 10)
    at, stopped = max(progress.times, default=0), time.monotonic()
    os.kill(launch.pids[victim], signal.SIGSTOP)
    needle = f"rank {victim} (process {launch.pids[victim]}"
    while needle not in launch.log.read_text() and time.monotonic() < stopped + STEP + SLACK:
        time.sleep(0.05)
    said = launch.log.read_text()
    steps = [f"at step {at + more}," in said for more in range(3)]  # it went on for a moment after we looked
    named = needle in said and f"rank {1 - victim} (process" not in said and any(steps)
    gone = launch.wait(20)
    stacks = [root / "run" / f"stacks.rank{rank}.txt" for rank in range(WORLD)]
    written = all(path.is_file() and "Thread 0x" in path.read_text() for path in stacks)
    time.sleep(0.5)
    left = launch.alive()
    code = launch.codes.get(launch.pids[1 - victim])
    launch.kill()
    held = named and gone and written and not left and code == 1
    if not held:
        print(
            f"named {named}, gone {gone}, stacks {written}, left {left}, code {code}:\n{said[-2000:]}", file=sys.stderr
        )
    return held


if __name__ == "__main__":
    import lightning.pytorch  # noqa: F401

    import clipkit.training  # noqa: F401

    results = stopped_rank_named("--quick" in sys.argv)
    print(results)
    sys.exit(not all(results))
