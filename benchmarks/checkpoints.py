"""Damaged checkpoints and full disks: how often the last good checkpoint is what a run goes on from.

The newest checkpoint is cut, flipped in one bit, emptied, robbed of a member or of its manifest, each member in turn: the one before it must be
chosen, and the words must name the one passed over and why. One bit is flipped at 100 places of all files: each must be found. The disk is a
small tmpfs, or where that cannot be mounted a limit on the size of a file: the last good checkpoint stays, nothing is left of the other, the
failure is counted and writing goes on once there is room. ``--quick`` does this without a Trainer; the full form damages the
checkpoints of real runs, which must end with the weights of a run that nothing happened to, and fills the disk under one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common import figure, finish, quick

from clipkit.callbacks.checkpoint_io import FolderCheckpointIO
from clipkit.checkpoint import newest, read_checkpoint, verify, weight_hash
from clipkit.run_folder import find_resume

MEMBERS = ("model.safetensors", "state.pt", "state.json", "manifest.json")
FLIPS = 100
STEPS, EVERY = 24, 4
CONFIG = """
model: {model}
data: {{train: {{demo: {{shards: embedded:train}}}}, batch_size: 16, workers: 0}}
loss: infonce
optim: {{lr: 1e-3, warmup: 2 steps}}
trainer: {{length: {steps} steps, devices: 1, accelerator: cpu}}
checkpoint: {{every: {every} steps, keep_last: 3, background: {background}}}
logging: {{every: 1 steps}}
"""
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
Damage = Callable[[Path], None]


def cut(path: Path) -> None:
    """Lose the second half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, place: int | None = None) -> None:
    """Turn one bit over."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    """Lose everything but the name."""
    os.truncate(path, 0)


DAMAGES: dict[str, Damage] = {"cut": cut, "flipped": flip, "emptied": empty, "missing": Path.unlink}


def save(writer: FolderCheckpointIO, model: torch.nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """One step of training and its checkpoint, as Lightning hands it over."""
    model(torch.randn(8, 64)).square().sum().backward()
    optimiser.step()
    known = {"global_step": int(folder.name), "loops": {}, "optimizer_states": [optimiser.state_dict()]}
    writer.save_checkpoint({"state_dict": model.state_dict(), **known}, folder)
    writer.wait()


def training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Something to train, half a megabyte with its moments."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Linear(256, 64))
    return model, torch.optim.AdamW(model.parameters())


def damaged(folder: Path) -> list[tuple[str, bool]]:
    """Every damage to every member of the newest of two checkpoints."""
    model, optimiser = training()
    for step in (10, 20):
        save(FolderCheckpointIO({}), model, optimiser, folder / "checkpoints" / str(step))
    good, last = folder / "checkpoints" / "10", folder / "checkpoints" / "20"
    shutil.copytree(last, folder / "whole")
    found = []
    for name, damage in DAMAGES.items():
        for member in MEMBERS:
            damage(last / member)
            chosen, said = find_resume(folder, "auto")
            named = len(said) == 1 and str(last) in said[0] and (member in said[0] or member == "manifest.json")
            found.append((f"{member} {name}", chosen == good and named))
            shutil.rmtree(last)
            shutil.copytree(folder / "whole", last)
    chosen, said = find_resume(folder, "auto")
    return [*found, ("nothing damaged", chosen == last and not said)]


def flips(folder: Path) -> list[tuple[str, bool]]:
    """One bit of one file at a time, drawn by size, each file at least five times."""
    last = folder / "checkpoints" / "20"
    sizes = {member: (last / member).stat().st_size for member in MEMBERS}
    draw = random.Random(0)
    members = [member for member in MEMBERS for _ in range(5)]
    members += draw.choices(MEMBERS, [sizes[member] for member in MEMBERS], k=FLIPS - len(members))
    found = []
    for member in members:
        whole, place = (last / member).read_bytes(), draw.randrange(sizes[member])
        flip(last / member, place)
        found.append((f"{member} bit of byte {place}", verify(last) is not None))
        (last / member).write_bytes(whole)
    return found


@contextlib.contextmanager
def small_disk(megabytes: float) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A folder, what fills its disk, and what frees it again: a tmpfs, else a limit on the size of this process's files."""
    with tempfile.TemporaryDirectory() as folder:
        size = f"size={int(megabytes * 1024)}k"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, check=False
        )
        ballast, limits = Path(folder) / "ballast", resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill() -> None:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))

        try:
            if mounted.returncode == 0:
                yield Path(folder), fill, ballast.unlink
            else:
                print(
                    "no tmpfs can be mounted here: a limit on the size of files stands for the full disk",
                    file=sys.stderr,
                )
                yield Path(folder), limit, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            if mounted.returncode == 0:
                subprocess.run(["umount", folder], check=True)


def full_disk(background: bool) -> list[tuple[str, bool]]:
    """Three checkpoints: one with room, one without, one with room again."""
    with small_disk(4) as (folder, fill, free):
        (model, optimiser), checkpoints = training(), folder / "checkpoints"
        writer = FolderCheckpointIO({}, background=background)
        save(writer, model, optimiser, checkpoints / "1")
        before = (checkpoints / "1" / "manifest.json").read_bytes()
        fill()
        save(writer, model, optimiser, checkpoints / "2")
        stayed = verify(checkpoints / "1") is None and (checkpoints / "1" / "manifest.json").read_bytes() == before
        counted = writer.failures == 1 and writer.lost == checkpoints / "2"
        alone = [path.name for path in checkpoints.iterdir()] == ["1"]
        free()
        save(writer, model, optimiser, checkpoints / "3")
        again = newest(checkpoints)[0] == checkpoints / "3" and writer.failures == 1 and writer.lost is None
    form = "background" if background else "at once"
    held = {"last good one stays": stayed, "counted": counted, "nothing left": alone, "goes on": again}
    return [(f"full disk, {form}: {name}", value) for name, value in held.items()]


def fit(folder: Path, run: Path, **options: object) -> subprocess.Popen[str]:
    """Start a real run."""
    (folder / "tiny.json").write_text(json.dumps(MODEL))
    config = folder / f"{run.name}.yaml"
    values = {"model": folder / "tiny.json", "steps": STEPS, "every": EVERY, "background": "false"} | options
    config.write_text(CONFIG.format(**values))
    command = [sys.executable, "-m", "clipkit", "fit", str(config), f"run={run}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Code and words of a run."""
    said = process.communicate(timeout=300)[0]
    return process.returncode, said


def weights(run: Path) -> str:
    """Hash of the final weights."""
    return weight_hash(read_checkpoint(run / "checkpoints" / str(STEPS)).model)


def damaged_runs(folder: Path) -> list[tuple[str, bool]]:
    """Real runs that lost their end, with each damage to the newest checkpoint that is left."""
    code, said = ended(fit(folder, folder / "whole"))
    assert code == 0, said
    wanted, found = weights(folder / "whole"), []
    for name, damage in DAMAGES.items():
        for member in ("model.safetensors", "manifest.json"):
            run = folder / f"{name}-{member}"
            shutil.copytree(folder / "whole", run)
            shutil.rmtree(run / "checkpoints" / str(STEPS))
            last = run / "checkpoints" / str(STEPS - EVERY)
            damage(last / member)
            (run.with_suffix(".yaml")).unlink(missing_ok=True)
            code, said = ended(fit(folder, run))
            lines = [line for line in said.splitlines() if "passed over" in line and str(last) in line]
            resumed = f"resuming {run / 'checkpoints' / str(STEPS - 2 * EVERY)}" in said
            found.append((f"run, {member} {name}", code == 0 and bool(lines) and resumed and weights(run) == wanted))
            shutil.rmtree(run)
    return found


def full_disk_run(folder: Path, background: bool) -> list[tuple[str, bool]]:
    """A real run whose disk is full for a while, and one whose disk stays full to the end."""
    found = []
    for stays in (False, True):
        run = folder / f"disk-{background}-{stays}"
        with small_disk(64) as (disk, fill, free):
            process = fit(folder, disk / run.name, steps=STEPS * 10, background=str(background).lower())
            record, filled = disk / run.name / "metrics.jsonl", 0
            while process.poll() is None:
                lines = len(record.read_text().splitlines()) if record.is_file() else 0
                if lines > 2 * EVERY and not filled:
                    fill()
                    filled, full_since = lines, time.monotonic()
                if filled and not stays and time.monotonic() - full_since > 2 and (disk / "ballast").exists():
                    free()
                time.sleep(0.01)
            code, said = ended(process)
            chosen, passed_over = newest(disk / run.name / "checkpoints")
            good = chosen is not None and not passed_over and "could not be written" in said
            counted = "train/checkpoint_failures" in record.read_text()
            steps = [json.loads(line)["step"] for line in record.read_text().splitlines()]
            no_gap = steps == list(range(1, len(steps) + 1))
            last = chosen is not None and int(chosen.name) == STEPS * 10
            if stays:
                held = good and code == 1 and no_gap and f"step {STEPS * 10} was trained" in said
            else:
                held = good and code == 0 and counted and no_gap and len(steps) == STEPS * 10 and last
            if not held:
                print(code, said[-3000:], steps[-3:], chosen, file=sys.stderr)
            found.append((f"run, disk full {'to the end' if stays else 'for a while'}, background {background}", held))
    return found


def main() -> int:
    """All cases, those of whole runs only without ``--quick``."""
    short = quick(__doc__ or "")
    torch.manual_seed(0)
    found: list[tuple[str, bool]] = []
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO() if short else sys.stderr):
        folder = Path(name)
        found += damaged(folder)
        flipped = flips(folder)
        found += [*full_disk(False), *full_disk(True)]
        if not short:
            (folder / "runs").mkdir()
            found += damaged_runs(folder / "runs")
            found += [*full_disk_run(folder / "runs", False), *full_disk_run(folder / "runs", True)]
    for what, held in (*found, *flipped):
        if not held:
            print(f"not recovered: {what}", file=sys.stderr)
    figures = {
        "recovered": figure([sum(held for _, held in found) / len(found)]),
        "cases": figure([len(found)]),
        "flips_found": figure([sum(held for _, held in flipped)]),
    }
    return finish("checkpoints", peer="none: open_clip takes the damaged file", figures=figures)


if __name__ == "__main__":
    sys.exit(main())
