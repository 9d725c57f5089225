"""The demo proves its promises on a short stretch: a killed and resumed run, and two ranks against one process.

Each proof is made of real processes of the command line; they run beside the training.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from clipkit.callbacks.metrics import RECORD
from clipkit.callbacks.say import say
from clipkit.checkpoint import read_checkpoint, weight_hash
from clipkit.config import Duration, RunConfig, write_config
from clipkit.processes import die_with_parent

STEPS, SAVE_EVERY, KILL_AFTER, RANK_STEPS, BATCH = 24, 8, 12, 20, 64


class Proofs:
    """The proofs of one demo.

    Args:
        config: The demo's configuration; towers, data and loss of the proofs are its own.
        out: The demo's folder.
    """

    def __init__(self, config: RunConfig, out: Path) -> None:
        self.folder = out / "proofs"
        self.config = config
        self.found: dict[str, Any] = {}
        self._failure: BaseException | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._prove, daemon=True)

    def __enter__(self) -> Self:
        """Begin beside what follows."""
        self.folder.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind, whatever went wrong."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()

    def finish(self) -> dict[str, Any]:
        """Wait, and return what was proven.

        Raises:
            ProofError: If a promise did not hold.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        resume, ranks = self.found["resume"], self.found["ranks"]
        say(
            f"proof: killed at step {resume['killed_at']}, resumed at {resume['resumed_at']}: weights after {STEPS} steps {resume['resumed']}"
        )
        say(f"       never stopped:                              weights after {STEPS} steps {resume['uninterrupted']}")
        say(
            f"proof: two gloo ranks against one process, {ranks['steps']} steps: largest gradient difference {ranks['gradient']:.1e}"
        )
        if not resume["equal"]:
            raise ProofError(
                f"a killed and resumed run ended with other weights than an uninterrupted one; see {self.folder}"
            )
        if ranks["gradient"] > 1e-4:
            raise ProofError(
                f"two ranks gave another gradient than one process: {ranks['gradient']:.1e}; see {self.folder}"
            )
        return self.found

    def _prove(self) -> None:
        try:
            self.found["resume"] = self._resume()
            self.found["ranks"] = self._ranks()
        except BaseException as failure:
            self._failure = failure

    def _resume(self) -> dict[str, Any]:
        whole, killed = self._fit("whole"), self._fit("killed")
        killed_at = self._kill(killed)
        self._wait(whole, "whole")
        checkpoints = self.folder / "killed" / "checkpoints"
        resumed_at = max((int(path.name) for path in checkpoints.glob("[0-9]*")), default=0)
        self._wait(self._fit("killed"), "killed")
        hashes = {name: self._hash(name) for name in ("whole", "killed")}
        return {
            "killed_at": killed_at,
            "resumed_at": resumed_at,
            "uninterrupted": hashes["whole"],
            "resumed": hashes["killed"],
            "equal": hashes["whole"] == hashes["killed"],
        }

    def _ranks(self) -> dict[str, Any]:
        config, out = self._write("ranks"), self.folder / "ranks.json"
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "clipkit.demo.ranks"]
        self._wait(self._start([*command, str(config), str(out), str(RANK_STEPS)], "ranks"), "ranks")
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    def _fit(self, name: str) -> subprocess.Popen[bytes]:
        return self._start(["-m", "clipkit", "fit", str(self._write(name))], name)

    def _write(self, name: str) -> Path:
        config = self.config
        config = config.model_copy(
            update={
                "run": str(self.folder / name),
                "trainer": config.trainer.model_copy(update={"length": Duration(STEPS, "steps"), "devices": 1}),
                "data": config.data.model_copy(update={"batch_size": BATCH, "workers": 0, "val": {}}),
                "optim": config.optim.model_copy(update={"warmup": Duration(4, "steps")}),
                "checkpoint": config.checkpoint.model_copy(
                    update={"every": [Duration(SAVE_EVERY, "steps")], "keep_best": 0, "best": None}
                ),
                "evaluate": config.evaluate.model_copy(update={"every": None, "tasks": {}}),
                "logging": config.logging.model_copy(update={"every": Duration(1, "steps")}),
            }
        )
        path = self.folder / f"{name}.yaml"
        write_config(config, path)
        return path

    def _start(self, arguments: list[str], name: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        self._processes.append(process)
        return process

    def _kill(self, process: subprocess.Popen[bytes]) -> int:
        record = self.folder / "killed" / RECORD
        while process.poll() is None:
            step = len(record.read_text().splitlines()) if record.is_file() else 0
            if step >= KILL_AFTER:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return step
            time.sleep(0.005)
        raise ProofError(f"the run that was to be killed ended before: {self._tail('killed')}")

    def _wait(self, process: subprocess.Popen[bytes], name: str) -> None:
        if process.wait() != 0:
            raise ProofError(f"the proof run {name} failed with code {process.returncode}: {self._tail(name)}")

    def _tail(self, name: str) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    def _hash(self, name: str) -> str:
        return weight_hash(read_checkpoint(self.folder / name / "checkpoints" / str(STEPS), with_state=False).model)


class ProofError(RuntimeError):
    """A promise that did not hold in the demo."""
