"""SIGTERM to rank 0, to rank 1, to both, at random times: who leaves late, and how many steps are lost.

Two gloo ranks train a tiny model on real shards, with a loader process each. Ranks are forked from one process that has imported all they
need, so that a trial costs seconds; some trials are cold instead, through torchrun and through clipkit's own launcher. ``late`` counts trials in
which a process was still there 30 s after the signal. ``lost_steps`` is the last step that any rank trained less the step of the newest
checkpoint that verifies. ``wrong`` counts trials with an exit code other than 75, without ``stopped.json`` where a run folder was made, or
whose resumed run ends with other weights than the uninterrupted one. No signal comes before a process has called clipkit.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from common import figure, finish, quick
from forked import fit_as_rank, free_port
from photos import caption, photographs

STEPS, BATCH, LIMIT = 30, 16, 30.0
SUBSETS = ((0,), (1,), (0, 1))
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
RUN = {
    "seed": 3,
    "loss": "infonce",
    "optim": {"lr": 1e-3, "warmup": "4 steps", "clip_norm": 1.0},
    "trainer": {"length": f"{STEPS} steps", "devices": 2, "accelerator": "cpu"},
    "checkpoint": {"every": "10 steps", "keep_last": 2},
    "logging": {"every": "1 steps"},
}


def prepare(folder: Path) -> Path:
    """Shards, model and configuration."""
    images = photographs(20, side=24)
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for number in range(96):
            for name, data in (
                (f"{number:05d}.jpg", images[number % 20]),
                (f"{number:05d}.txt", caption(number).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "tiny.json").write_text(json.dumps(MODEL))
    source = {"shards": str(folder / "pairs.tar")}
    data = {
        "train": {"pairs": source},
        "batch_size": BATCH,
        "workers": 1,
        "start_method": "fork",
        "trace": True,
        "cache": str(folder),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump({"model": str(folder / "tiny.json"), "data": data, **RUN}))
    return folder / "run.yaml"


class Warm:
    """Two ranks forked from a process that has everything imported."""

    context: Any = multiprocessing.get_context("forkserver")

    def __init__(self, config: Path, folder: Path) -> None:
        arguments = ["fit", str(config), f"run={folder}"]
        same = {"world": 2, "port": free_port()}
        self.marks = [folder.with_suffix(f".{rank}") for rank in (0, 1)]
        self.processes = [
            self.context.Process(
                target=fit_as_rank,
                args=(arguments, folder.with_suffix(".log"), rank),
                kwargs=same | {"before": partial(Path.touch, mark)},
            )
            for rank, mark in enumerate(self.marks)
        ]
        for process in self.processes:
            process.start()

    def wait_for_python(self) -> None:
        """Until both are about to call clipkit: before that a signal meets none of its code."""
        deadline = time.monotonic() + 120
        while not all(mark.exists() for mark in self.marks) and time.monotonic() < deadline:
            time.sleep(0.002)

    def send(self, ranks: Sequence[int]) -> None:
        """SIGTERM to some ranks; one may leave just now, and then its code tells."""
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, signal.SIGTERM)

    def codes(self, seconds: float) -> list[int | None]:
        """The exit codes after at most so long; as torchrun, ask the others to leave where one left before they had met."""
        deadline, asked = time.monotonic() + seconds, False
        while time.monotonic() < deadline and any(process.exitcode is None for process in self.processes):
            time.sleep(0.02)
            left = [process.exitcode for process in self.processes]
            if not asked and None in left and any(left):
                self.send([rank for rank, code in enumerate(left) if code is None])
                asked = True
        found = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
        return found


class Cold:
    """Two ranks started by a command line, as a user does it."""

    def __init__(self, config: Path, folder: Path, *, torchrun: bool) -> None:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"] if torchrun else []
        command = [sys.executable, "-m", *launcher, "clipkit", "fit", str(config), f"run={folder}"]
        self.torchrun = torchrun
        with folder.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def send(self, ranks: Sequence[int]) -> None:
        """SIGTERM to some ranks; to the process that the user started where all are meant."""
        pids = descendants(self.process.pid)
        if len(ranks) == 2:
            self.process.send_signal(signal.SIGTERM)
            return
        for pid in pids:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                mine = any(f"RANK={rank}".encode() in words for rank in ranks)
                if mine and b"clipkit" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGTERM)

    def codes(self, seconds: float) -> list[int | None]:
        """The exit code; torchrun turns every one but 0 into 1."""
        pids = descendants(self.process.pid)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return [None]
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if alive:
            return [None]
        return [75 if self.torchrun and code == 1 else code]


def descendants(pid: int) -> list[int]:
    """The children of a process and theirs."""
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def trained(folder: Path) -> int:
    """The last step that any rank trained."""
    return max((len(path.read_text().splitlines()) for path in folder.glob("samples.rank*.jsonl")), default=0)


def wait_until(folder: Path, step: int) -> None:
    """Until a rank has trained so many steps, or two minutes."""
    deadline = time.monotonic() + 120
    while trained(folder) < step and time.monotonic() < deadline:
        time.sleep(0.01)


def finished_hash(folder: Path) -> str:
    """Of the weights of the last step."""
    from clipkit.checkpoint import read_checkpoint, weight_hash

    return weight_hash(read_checkpoint(folder / "checkpoints" / str(STEPS)).model)


def trial(started: Warm | Cold, folder: Path, ranks: Sequence[int], draw: random.Random) -> dict[str, float]:
    """Send the signal at a random time, one in eight of them before the first step."""
    from clipkit.checkpoint import newest

    step = draw.randrange(-4, STEPS - 8)
    if isinstance(started, Warm):
        started.wait_for_python()
    if step > 0 or isinstance(started, Cold):
        wait_until(folder, max(step, 1))
    time.sleep(draw.uniform(0, 0.1 if step > 0 else 3))
    sent = time.monotonic()
    started.send(ranks)
    codes = started.codes(LIMIT)
    seconds = time.monotonic() - sent
    found, passed_over = newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else (None, [])
    word = folder / "stopped.json"
    told = json.loads(word.read_text()) if word.is_file() else {}
    saved = 0 if found is None else int(found.name)
    unread = not folder.exists()  # the configuration, and with it where to leave a word
    worded = unread or (told.get("code") == 75 and told.get("step") == saved)
    right = set(codes) == {75} and not passed_over and worded
    result = {
        "seconds": seconds,
        "late": float(None in codes),
        "lost": trained(folder) - saved,
        "wrong": float(not right),
    }
    print(json.dumps({"ranks": ranks, "drawn": step, "saved": saved, "codes": codes, **result}), flush=True)
    return result


def resumed_wrong(config: Path, folder: Path, reference: str) -> bool:
    """Whether the same command again does not end with the bits of the uninterrupted run."""
    return Warm(config, folder).codes(300) != [0, 0] or finished_hash(folder) != reference


def main() -> int:
    """Ten trials a subset of ranks (``--quick``: two), two of them cold."""
    short = quick(__doc__ or "")
    count, draw = (2 if short else 10), random.Random(0)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    Warm.context.set_forkserver_preload(
        ["clipkit.training", "clipkit.packing", "clipkit.cli.main", "omegaconf", "open_clip"]
    )
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as place:
        config = prepare(Path(place))
        assert Warm(config, Path(place) / "whole").codes(300) == [0, 0], (Path(place) / "whole.log").read_text()
        reference = finished_hash(Path(place) / "whole")
        for ranks in SUBSETS:
            for number in range(count):
                folder = Path(place) / f"run-{'-'.join(map(str, ranks))}-{number}"
                cold = number == count - 1 and ranks != (0,)
                started = Cold(config, folder, torchrun=len(ranks) == 1) if cold else Warm(config, folder)
                result = trial(started, folder, ranks, draw)
                if (not short or not results) and resumed_wrong(config, folder, reference):
                    result["wrong"] = 1.0
                if result["late"] or result["wrong"]:
                    print(folder.with_suffix(".log").read_text(), file=sys.stderr)
                results.append(result)
    late, wrong = (sum(result[key] for result in results) for key in ("late", "wrong"))
    figures = {
        "late": figure([late]),
        "wrong": figure([wrong]),
        "trials": figure([len(results)]),
        "lost_steps": figure([result["lost"] for result in results], max(result["lost"] for result in results)),
        "seconds_to_leave": figure([result["seconds"] for result in results]),
    }
    return finish("signals", peer="none: Lightning 2.6.6 hangs where one of two ranks gets SIGTERM", figures=figures)


if __name__ == "__main__":
    sys.exit(main())
