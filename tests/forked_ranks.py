"""Ranks forked from a process that has imported all they need: real processes in a real gloo group, without the seconds of their imports.

As a program it reads one job a line, forks its ranks, waits for them, and answers with their exit codes in one line. A job's ``signal`` may name
a moment: rank 0 then sends SIGTERM to some of them, itself included, in the middle of it.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.forked import fit_as_rank, free_port

MODULES = ("omegaconf", "open_clip", "clipkit.training", "clipkit.packing", "clipkit.cli.main")


class ForkedRanks:
    """The other end of the program, for tests; to be closed."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_ranks"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fit(self, *arguments: object, log: Path, world: int = 2, at: dict[str, object] | None = None) -> list[int]:
        """The exit codes of ``clipkit fit ARGUMENTS`` on ``world`` ranks; ``at`` is as in ``send_at``."""
        job = {"arguments": ["fit", *map(str, arguments)], "log": str(log), "world": world, "signal": at}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes

    def close(self) -> None:
        """End the program."""
        self.process.communicate()


def send_at(log: Path, rank: int, moment: dict[str, object]) -> None:
    """Let rank 0 send SIGTERM to the ranks in ``to``.

    Args:
        log: Where the ranks' process ids stand beside it.
        rank: This one.
        moment: ``{"save": STEP}``, while its weights are written; ``{"train": STEP}``, as it begins; or ``{"evaluate": True}``, at each first
            batch.
    """
    from clipkit import checkpoint
    from clipkit.data.datamodule import ShardDataModule
    from clipkit.module import CLIPModule

    to = moment["to"]
    assert isinstance(to, list)
    write, train, batches = checkpoint._write, CLIPModule.training_step, ShardDataModule.val_batches

    def send() -> None:
        for receiver in to:
            os.kill(int(log.with_suffix(f".{receiver}").read_text()), signal.SIGTERM)

    def written(path: Path, data: bytes) -> dict[str, object]:
        if path.parent.name.startswith(f".{moment.get('save')}.") and path.name == "model.safetensors":
            send()
            time.sleep(0.3)
        return write(path, data)

    def trained(module: CLIPModule, batch: object, index: int) -> object:
        if index + 1 == moment.get("train") and rank == 0:
            send()
        return train(module, batch, index)  # type: ignore[arg-type]

    def evaluated(data: ShardDataModule) -> Iterator[object]:
        for number, batch in enumerate(batches(data)):
            if number == 0 and moment.get("evaluate") and rank == 0:
                send()
            yield batch

    checkpoint._write = written  # type: ignore[assignment]
    CLIPModule.training_step = trained  # type: ignore[assignment, method-assign]
    ShardDataModule.val_batches = evaluated  # type: ignore[assignment, method-assign]


def be_a_rank(rank: int, port: int, job: dict[str, object]) -> None:
    """What torchrun would have started, but for the imports."""
    log = Path(str(job["log"]))

    def trap() -> None:
        log.with_suffix(f".{rank}").write_text(str(os.getpid()))
        if job["signal"] is not None:
            send_at(log, rank, job["signal"])  # type: ignore[arg-type]

    fit_as_rank(job["arguments"], log, rank, world=int(str(job["world"])), port=port, before=trap)  # type: ignore[arg-type]


def main() -> None:
    """Jobs in, exit codes out."""
    for name in MODULES:
        __import__(name)
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        port = free_port()
        pids = []
        for rank in range(job["world"]):
            pid = os.fork()
            if pid == 0:
                be_a_rank(rank, port, job)
            pids.append(pid)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


if __name__ == "__main__":
    main()
