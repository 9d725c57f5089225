"""Faults upon faults: two gloo ranks of a real `clipkit fit` are hit at random moments and started again until the run is done.

100 SIGKILLs of a random rank, a quarter inside saves, a quarter at the plan's epoch edges, loader workers 0 and 2 in turn (``--quick``: 6
kills, 2 and 1 of them); 2 are cold, through the command line, other ranks are forked from this process, which has imported all. Against the
same run uninterrupted: ``mismatches`` are the (step, rank) whose sample keys differ, the steps whose figures differ by a bit, final weights
whose hash differs, and another account of the data (``faults_bad`` of their samples had a substitute). ``torn``: checkpoints under their own
name that do not verify after a fault, but for one that was being removed (no manifest, older than the newest two that verify). ``orphans``:
processes alive 20 s after a fault. ``leaks``: files left in /dev/shm, entries that launches through the command line left in the folder for
temporary files, launches whose rank had more descriptors in each of its last six steps than around its eighth. ``goodput``: seconds of steps
that were kept over seconds of all steps; a launch's seconds run from the end of its first step to the fault, the kept ones to the commit of
the checkpoint that the next went on from.
``--faults N`` or ``--hours H`` add SIGSTOP (then SIGCONT), SIGTERM, a full disk (a limit on the size of files) and 503s of a server. A fault
counts (``faults_...``) where it showed: a signal found its process, a save said that it failed, the server was asked; else it is ``missed``.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import lightning.pytorch  # noqa: E402, F401  # what ranks that are forked need not import again
import torch  # noqa: E402
from chaos_faults import Fault  # noqa: E402
from chaos_ranks import WORLD, Launch, shared_memory, signal_to  # noqa: E402
from chaos_world import (  # noqa: E402
    BATCH,
    EPOCH,
    EVERY,
    Progress,
    Web,
    account_of,
    edges,
    figures_of,
    keys_of,
    make_shards,
    write_config,
)
from common import figure, finish  # noqa: E402

import clipkit.training  # noqa: E402, F401
from clipkit.checkpoint import MANIFEST, newest, read_checkpoint, steps, verify, weight_hash  # noqa: E402

GAP, GRACE, SLOWEST = 40, 20.0, 300.0
LAST = 2 * EVERY  # steps in which no save has a file open all the time
KILLS, OTHERS = ("random", "save", "edge"), ("stop", "term", "disk", "web")  # and "bad": samples, in every run


REFUSED = "train/checkpoint_failures"
"""The one figure that a full disk must change: it counts the checkpoints that it cost."""


def leaked(descriptors: list[int]) -> bool:
    """Whether a rank's open descriptors of each step grew for good: a save in the background has a file open for a step or two."""
    return len(descriptors) >= 10 + LAST and min(descriptors[-LAST:]) > max(descriptors[6:10])


class Chaos:
    """A run under faults, and what was seen.

    Args:
        root: A new folder for everything.
        length: Steps of the run.
        seed: Of all that is drawn.
        web: Whether shards come from a server.
    """

    def __init__(self, root: Path, length: int, seed: int, *, web: bool) -> None:
        self.root, self.length, self.rng = root, length, random.Random(seed)
        make_shards(root / "shards")
        self.web = Web(root / "shards") if web else None
        self.config = write_config(root, self.web.url if self.web else str(root / "shards"), length)
        self.temporary = root / "tmp"
        self.temporary.mkdir()
        self.run, self.reference = root / "run", root / "reference"
        self.launches, self.points, self.began = 0, 0, time.monotonic()
        self.shm = shared_memory()
        self.pending: list[tuple[float, Launch]] = []
        self.useful = self.spent = 0.0
        self.lost = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.missed: collections.Counter[str] = collections.Counter()
        self.torn, self.orphans, self.leaks = list[str](), list[str](), list[str]()
        self.cut: tuple[Progress, float] | None = None

    def start(self, folder: Path, fault: Fault | None) -> tuple[Launch, Progress]:
        """Start the ranks."""
        self.launches += 1
        launch = Launch(self.root / f"launch{self.launches}", {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"})
        arguments = ["fit", str(self.config), f"run={folder}", f"data.workers={fault.workers if fault else 0}"]
        found, _ = newest(folder / "checkpoints")
        progress = Progress(folder)
        if fault is not None and fault.cold:
            launch.cold(arguments)
        else:
            launch.fork(arguments, fault, 0 if found is None else int(found.name), edges)
        return launch, progress

    def say(self, line: str) -> None:
        """A line of what happens."""
        print(f"{time.monotonic() - self.began:6.1f} s  {line}", file=sys.stderr, flush=True)

    def whole(self) -> None:
        """The uninterrupted run; it also tells how many write points a save has."""
        launch, progress = self.start(self.reference, None)
        self._until(launch, progress, lambda: False)
        if not launch.wait(60) or set(launch.codes.values()) != {0}:
            raise RuntimeError(f"the uninterrupted run failed:\n{launch.log.read_text()[-3000:]}")
        assert f"{EPOCH} pairs an epoch" in launch.log.read_text()
        self.say(f"uninterrupted: {self.length} steps")
        self.points = int((launch.folder / "points").read_text()) // (self.length // EVERY)
        self._after(launch)

    def _until(self, launch: Launch, progress: Progress, due: Callable[[], bool]) -> bool:
        """Watch a launch until it ends (False) or something is due (True)."""
        last, count = time.monotonic(), 0
        while launch.ended() is None:
            if progress.look() > count:
                last, count = time.monotonic(), len(progress.times)
            if due():
                return True
            if time.monotonic() - last > SLOWEST:
                launch.kill()
                raise RuntimeError(f"no step in {SLOWEST:.0f} s:\n{launch.log.read_text()[-3000:]}")
            time.sleep(0.004)
        progress.look()
        return False

    def draw(self, kind: str, *, cold: bool = False) -> Fault:
        """When and whom."""
        after = self.rng.randrange(GAP * 3 // 4, GAP * 5 // 4)
        point = after // EVERY * self.points + self.rng.randrange(self.points) if self.points else 0
        return Fault(
            kind=kind,
            victim=self.rng.randrange(WORLD),
            after=after,
            point=point,
            cut=self.rng.random(),
            wait=self.rng.random(),
            cold=cold,
            workers=2 * (self.launches % 2),
        )

    def hit(self, fault: Fault) -> bool:
        """One launch with a fault; False when the run was done before it."""
        if self.web and fault.kind == "web":
            shutil.rmtree(self.root / "cache", ignore_errors=True)
            self.web.failing = 3
        begun, refused = time.time(), self.web.failed if self.web else 0
        launch, progress = self.start(self.run, fault)
        self._account(progress)
        outside = fault.kind not in ("save", "edge")
        due = self._until(
            launch, progress, lambda: outside and len(progress.times) > fault.after and bool(launch.find_ranks())
        )
        happened, struck = False, 0.0
        if due:
            seen = sorted(progress.times.values())
            time.sleep(fault.wait * 2 * (seen[-1] - seen[0]) / max(1, len(seen) - 1))
            happened = self._strike(launch, fault)
            struck = time.time() if fault.kind == "random" else 0.0
            self._until(launch, progress, lambda: False)
        marker, code = launch.folder / "marker.json", launch.ended()
        if self.web and fault.kind == "web":
            happened = self.web.failed > refused
        if marker.exists():
            happened = True
            struck = float(json.loads(marker.read_text())["time"])
        ended = struck or max(progress.times.values(), default=time.time())
        self.counts[fault.kind] += happened
        self.missed[fault.kind] += not happened
        self.cut = (progress, ended)
        if not launch.wait(60):
            self.orphans.append(f"launch {self.launches}: ranks still there 60 s after {fault}")
            launch.kill()
        self._check(launch, fault, code)
        first = min(progress.times.values(), default=ended)
        spent = (first - begun, ended - first, time.time() - ended)
        self.say(f"{fault}: {len(progress.times)} steps; start, steps, end: {', '.join(f'{x:.1f} s' for x in spent)}")
        return code != 0

    def _strike(self, launch: Launch, fault: Fault) -> bool:
        """What is done from outside; whether it showed."""
        victim, showed = launch.pids[fault.victim], True
        if fault.kind == "random":
            return signal_to(victim, signal.SIGKILL)
        if fault.kind == "stop":
            signal_to(victim, signal.SIGSTOP)
            time.sleep(1 + 2 * fault.wait)
            signal_to(victim, signal.SIGCONT)
        elif fault.kind == "disk":
            largest = max(path.stat().st_size for path in self.run.iterdir() if path.is_file())
            writer, limits = launch.pids[0], (largest + 500_000, resource.RLIM_INFINITY)
            resource.prlimit(writer, resource.RLIMIT_FSIZE, limits)
            deadline = time.monotonic() + 60
            while "could not be written" not in launch.log.read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            resource.prlimit(writer, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            showed = time.monotonic() < deadline
        there = signal_to(victim, signal.SIGTERM)  # the end of every launch that the fault itself does not end
        return showed and there

    def _account(self, progress: Progress) -> None:
        """Add up the launch before, now that it is known where this one goes on from."""
        if self.cut is None:
            return
        before, ended = self.cut
        found, _ = newest(self.run / "checkpoints")
        if before.times:
            first = min(before.times.values())
            committed = (found / MANIFEST).stat().st_mtime if found is not None else first
            self.spent += ended - first
            self.useful += min(max(0.0, committed - first), ended - first)
            self.lost += max(0, max(before.times) - (int(found.name) if found is not None else 0))
        self.cut = None

    def _check(self, launch: Launch, fault: Fault, code: int | None) -> None:
        """What a fault left behind."""
        checkpoints = steps(self.run / "checkpoints")
        whole = [path for path in checkpoints if verify(path) is None]
        for path in set(checkpoints) - set(whole):
            removed = not (path / MANIFEST).exists() and len(whole) >= 2 and int(path.name) < int(whole[1].name)
            if not removed:
                self.torn.append(f"{path.name} after {fault}: {verify(path)}")
        self._after(launch)
        said = launch.log.read_text()
        if code not in (0, 1, 75, -signal.SIGKILL):
            self.orphans.append(f"launch {self.launches} left with {code} after {fault}: {said[-2000:]}")

    def _after(self, launch: Launch) -> None:
        """Look at descriptors now, and at processes when their time to leave is over."""
        for rank in range(WORLD):
            path = launch.folder / f"descriptors.{rank}"
            counts = [int(line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []
            if leaked(counts):
                self.leaks.append(f"launch {self.launches} rank {rank}: descriptors {counts}")
        self.pending.append((time.monotonic() + GRACE, launch))
        self.settle(0)

    def settle(self, seconds: float) -> None:
        """Count whom it is too late for."""
        deadline = time.monotonic() + seconds
        while self.pending and (time.monotonic() < deadline or self.pending[0][0] < time.monotonic()):
            self.pending = [(until, launch) for until, launch in self.pending if launch.alive()]
            for until, launch in [entry for entry in self.pending if entry[0] < time.monotonic()]:
                self.orphans += [f"{launch.folder.name}: process {pid}" for pid in launch.alive()]
                launch.kill()
                self.pending.remove((until, launch))
            time.sleep(0.1)

    def finish(self) -> None:
        """Go on until the run is done, and see what is left."""
        while True:
            launch, progress = self.start(self.run, None)
            self._account(progress)
            self._until(launch, progress, lambda: False)
            self.cut = (progress, max(progress.times.values(), default=0.0))
            launch.wait(60)
            self._after(launch)
            if set(launch.codes.values()) != {0}:
                raise RuntimeError(f"the last launch failed:\n{launch.log.read_text()[-3000:]}")
            break
        self._account(progress)
        self.settle(GRACE + 5)
        self.leaks += [f"/dev/shm/{name}" for name in shared_memory() - self.shm]
        self.leaks += [str(path) for path in self.temporary.iterdir()]

    def mismatches(self) -> list[str]:
        """Everything in which the run differs from the uninterrupted one."""
        found = []
        for rank in range(WORLD):
            ours, whole = keys_of(self.run, rank), keys_of(self.reference, rank)
            assert list(whole) == [step * BATCH for step in range(self.length)]
            found += [
                f"keys of rank {rank}, position {p}" for p in sorted({*ours, *whole}) if ours.get(p) != whole.get(p)
            ]
        mine, right = figures_of(self.run), figures_of(self.reference)
        assert list(right) == list(range(1, self.length + 1))
        for step in sorted({*mine, *right}):
            one, other = mine.get(step, {}), right.get(step, {})
            keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
            if keys and not (self.counts["disk"] and keys == [REFUSED]):
                found.append(f"figures of step {step}: {', '.join(keys)}")
        hashes = [
            weight_hash(read_checkpoint(folder / "checkpoints" / str(self.length)).model)
            for folder in (self.run, self.reference)
        ]
        accounts = [account_of(folder / "checkpoints" / str(self.length)) for folder in (self.run, self.reference)]
        found += [f"the data's {part}" for part, whole in accounts[1].items() if accounts[0].get(part) != whole]
        self.counts["bad"] = sum(sum(causes.values()) for causes in accounts[0]["bad"]["noise"].values())
        return found + (["weights"] if hashes[0] != hashes[1] else [])


def plan(faults: int, rng: random.Random, *, others: bool) -> list[str]:
    """Kinds of faults: of kills a quarter each inside saves and at edges; with ``others`` half are of the other kinds."""
    kills = faults // 2 if others else faults
    kinds = ["save"] * max(2, kills // 4) + ["edge"] * max(1, kills // 4)
    kinds += ["random"] * (kills - len(kinds))
    kinds += [OTHERS[number % len(OTHERS)] for number in range(faults - len(kinds))]
    rng.shuffle(kinds)
    return kinds


def torture(faults: int, *, cold: int, others: bool, seed: int) -> tuple[Chaos, list[str]]:
    """A run with so many faults, and its differences from the uninterrupted one."""
    rng = random.Random(seed)
    kinds = plan(faults, rng, others=others)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), len(kinds) * GAP * 5 // 4 + 2 * EPOCH // BATCH, seed, web=others)
        chaos.whole()
        left = cold
        for number, kind in enumerate(kinds):
            fault = chaos.draw(kind, cold=kind == "random" and left > 0)
            left -= fault.cold
            went_on = chaos.hit(replace(fault, workers=2 * (number % 2)))
            if not went_on:
                break
        chaos.finish()
        return chaos, chaos.mismatches()


def main() -> int:
    """Torture a run, print what was found, hold it against the bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="6 kills")
    parser.add_argument("--faults", type=int, help="so many faults of all kinds")
    parser.add_argument("--hours", type=float, help="faults of all kinds for so long")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)), help="of the moments; printed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    others = bool(asked.faults or asked.hours)
    faults = asked.faults or (6 if asked.quick else 40 if asked.hours else 100)
    print(f"seed {asked.seed}", file=sys.stderr, flush=True)
    until = time.monotonic() + 3600 * (asked.hours or 0)
    rounds = []
    while not rounds or time.monotonic() < until:
        rounds.append(torture(faults, cold=2, others=others, seed=asked.seed + len(rounds)))
    found: dict[str, float] = collections.Counter()
    for chaos, mismatches in rounds:
        for name, lines in {
            "mismatches": mismatches,
            "torn": chaos.torn,
            "orphans": chaos.orphans,
            "leaks": chaos.leaks,
        }.items():
            found[name] += len(lines)
            for line in lines:
                print(f"{name}: {line}", file=sys.stderr)
        for kind in (*KILLS, *(OTHERS if others else ()), "bad"):
            found[f"faults_{kind}"] += chaos.counts[kind]
        found["missed"] += sum(chaos.missed.values())
        found["lost_steps"] += chaos.lost
    found["goodput"] = sum(chaos.useful for chaos, _ in rounds) / sum(chaos.spent for chaos, _ in rounds)
    figures = {name: figure([value]) for name, value in found.items()}
    code = finish("chaos", peer="the same run, uninterrupted", figures=figures)
    return code if all(value for name, value in found.items() if name.startswith("faults_")) else 1


if __name__ == "__main__":
    sys.exit(main())
