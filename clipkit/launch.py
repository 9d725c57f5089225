"""Several ranks: how many a run has, and starting them.

Ranks are fresh ``python -m clipkit fit RESOLVED.yaml`` processes under ``torch.distributed.run``: Lightning would run the caller's own
``sys.argv`` again on each rank. They leave word of how the run ended in a file, because torchrun turns every exit code into 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from clipkit import distributed
from clipkit.allowed import Allowed
from clipkit.config import RunConfig, write_config
from clipkit.processes import die_with_parent
from clipkit.run_folder import STOPPED_CODE

OUTCOME = "CLIPKIT_OUTCOME"
"""Names the file in which ranks that we started leave the exit code and the last words."""
_TORCHRUNS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # what torchrun passes on to its ranks by itself


class RanksFailed(RuntimeError):
    """Ranks that were started here failed."""


def ranks_wanted(config: RunConfig, devices_here: int) -> tuple[int, int]:
    """Ranks a node and nodes of the run.

    Args:
        config: The run's configuration.
        devices_here: GPUs of this machine, or 1 on CPU: what ``auto`` means without a launcher.

    Raises:
        ValueError: If a launcher started another number than the user set.
    """
    devices, nodes = config.trainer.devices, config.trainer.nodes
    if not distributed.launched():
        if nodes > 1:
            raise ValueError(
                f"trainer.nodes={nodes} needs a launcher on each node: torchrun --nnodes {nodes} --nproc-per-node N "
                "--rdzv-backend c10d --rdzv-endpoint HOST:PORT -m clipkit fit CONFIG"
            )
        return (devices_here if devices == "auto" else int(devices)), 1
    local, launched_nodes = distributed.launcher_world()
    if devices != "auto" and int(devices) != local:
        raise ValueError(
            f"the launcher started {local} ranks a node, but trainer.devices={devices}; leave trainer.devices out (auto) or make them agree"
        )
    if nodes not in (1, launched_nodes):
        raise ValueError(
            f"the launcher has {launched_nodes} nodes, but trainer.nodes={nodes}; leave it out or make them agree"
        )
    return local, launched_nodes


def start_ranks(
    config: RunConfig,
    *,
    ranks: int,
    resume: str,
    plugin: str | None,
    allowed: Allowed,
) -> tuple[int, str]:
    """Run ``config`` on ``ranks`` fresh processes of this machine and wait for them.

    SIGTERM, SIGUSR1 and the first Ctrl-C are passed on to the ranks as a request to stop; a second Ctrl-C ends all at once.

    Returns:
        The exit code as DESIGN defines it (75 also where ranks that were asked to stop ended before they could answer), and the last words of
        rank 0 (empty where there are none).
    """
    with tempfile.TemporaryDirectory(prefix="clipkit-") as folder:
        resolved = Path(folder) / "run.yaml"
        write_config(config, resolved)
        command = ["fit", str(resolved), "--resume", resume, *(["--plugin", plugin] if plugin else [])]
        return run_again([*command, *allowed.flags()], ranks=ranks)


def run_again(arguments: Sequence[str], *, ranks: int) -> tuple[int, str]:
    """Run a command line of clipkit on fresh processes of this machine; as ``start_ranks``.

    Args:
        arguments: What follows ``clipkit``.
        ranks: How many processes.
    """
    with tempfile.TemporaryDirectory(prefix="clipkit-", ignore_cleanup_errors=True) as folder:
        outcome, temporary = Path(folder) / "outcome.json", Path(folder) / "tmp"
        temporary.mkdir()  # what torchrun and killed ranks leave goes with it
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["--signals-to-handle", ",".join((*_TORCHRUNS, "SIGUSR1")), "-m", "clipkit", *arguments]
        environment = os.environ | {OUTCOME: str(outcome), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}
        environment["TMPDIR"] = str(temporary)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
        with subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent) as process:
            code, asked = _wait(process)
        if code != 130 and outcome.is_file():
            told = json.loads(outcome.read_text())
            return int(told["code"]), str(told["message"])
        if asked and code not in (0, 130):  # they were not listening yet
            return STOPPED_CODE, ""
        return (code if code in (0, 130) else 1), ""


def leave_word(code: int, message: str) -> bool:
    """On a rank that ``start_ranks`` started, leave the outcome for it; says whether this is such a rank.

    The first failure stays: what other ranks say after it is only that a peer is gone.
    """
    if not started_here():
        return False
    path = Path(os.environ[OUTCOME])
    if distributed.launcher_rank() == 0 or code != 0:
        own = path.with_name(f"{path.name}.{distributed.launcher_rank()}")
        own.write_text(json.dumps({"code": code, "message": message}))
        with contextlib.suppress(FileExistsError):
            os.link(own, path)  # whole at once, and only where there is none
    return True


def started_here() -> bool:
    """Whether ``start_ranks`` started this process as a rank."""
    return OUTCOME in os.environ and distributed.launched()


def die_with_torchrun() -> None:
    """A rank ends with its torchrun, also with one that was gone before the rank could ask for that."""
    parent = Path(f"/proc/{os.getppid()}/cmdline")
    if die_with_parent() and parent.is_file() and b"torch.distributed.run" not in parent.read_bytes():
        os._exit(1)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """The exit code of torchrun, and whether it was asked to stop."""
    interrupts, asked = 0, False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts, asked
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            with contextlib.suppress(ProcessLookupError):  # a third one
                os.killpg(process.pid, signal.SIGKILL)
        elif not asked:  # a second SIGTERM would make torchrun leave before its ranks have saved
            asked = True
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return (130 if interrupts > 1 else code), asked
