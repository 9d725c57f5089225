"""The run folder: what it holds, when a run may go on in it, and how a run ended."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit import distributed
from clipkit.checkpoint import INFO, CheckpointError, newest, shapes, steps, verify
from clipkit.checkpoint_copies import FETCHED, Copies, place_of, refused
from clipkit.config import DISTRIBUTION, RunConfig, describe_difference, load_config, write_config
from clipkit.config.write import as_tree
from clipkit.data.urls import shown

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, COMMAND, ENVIRONMENT, STOPPED = "config.yaml", "command.txt", "environment.json", "stopped.json"
STOPPED_CODE = 75
MAY_CHANGE = (
    "run:",
    "data.workers",
    "data.start_method",
    "data.cache",  # and data.cache_size
    "data.trace",
    "trainer.devices",
    "trainer.strategy",
    "trainer.nodes",
    "trainer.timeouts",
    "checkpoint.",
    "evaluate.every",
    "evaluate.at_start",
    "evaluate.stop",
    "logging.",
)
"""Keys that do not decide what is computed; a run may go on with others."""
DATA = ("data.", "seed:")
"""Keys of the data plan: with ``--allow-mismatch`` a run goes on with others, at the plan's beginning."""

_PASSED_OVER = "warning: a checkpoint is not usable and was passed over:"
_MISMATCH_CURE = (
    ", or go on with its weights and optimiser at the beginning of the new data: the same command with --allow-mismatch"
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    step: int
    steps: int
    stopped: str | None = None
    """The signal that stopped it, None for a finished run."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the last evaluation."""
    early: str | None = None
    """Why ``evaluate.stop`` ended it before its length; None if it did not."""

    @property
    def code(self) -> int:
        """The process's exit code: 0 finished, 75 stopped and resumable."""
        return STOPPED_CODE if self.stopped else 0


def check_folder(folder: Path, config: RunConfig, *, fresh: bool, allow_mismatch: bool = False) -> list[str]:
    """Whether this run may use the folder: it is new, or the run in it is this one. Nothing is written.

    Args:
        folder: The run folder.
        config: This run's configuration.
        fresh: Whether the user asked for a new run (``--resume never``).
        allow_mismatch: Whether the keys of the data may differ.

    Returns:
        A line on each key of the data that differs; none unless that is allowed.

    Raises:
        ValueError: If another configuration's run stands there, named key by key, or something that is no run.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the run folder {folder} is a file; name another with run=DIR")
    stored = folder / CONFIG
    if stored.is_file():
        different = differences(stored, config)
        of_data = [line for line in different if line.startswith(DATA)]
        if different and not (allow_mismatch and len(of_data) == len(different)):
            listed = "\n  ".join(different)
            raise ValueError(
                f"{folder} holds a run of another configuration; nothing was changed there. What differs (there -> here):\n  {listed}\n"
                "Name another folder with run=DIR, or go on with the configuration that stands there: "
                f"clipkit fit {stored}" + (_MISMATCH_CURE if len(of_data) == len(different) else "")
            )
        if fresh and steps(folder / "checkpoints"):
            raise ValueError(
                f"{folder} holds a run already and --resume never would overwrite it; name another folder with run=DIR"
            )
        return of_data
    fetched = (folder / "checkpoints" / FETCHED).is_file()  # by a start that was refused after it
    known = {STOPPED} | ({"checkpoints"} if fetched else set())
    if folder.is_dir() and any(path.name not in known for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and is no run folder ({CONFIG} is missing); name another with run=DIR")
    return []


def differences(stored: Path, config: RunConfig) -> list[str]:
    """A line on each key that decides what is computed and differs between a stored configuration and this one (there -> here)."""
    return [
        line
        for line in describe_difference(load_config(stored), without_secrets(config))
        if not line.startswith(MAY_CHANGE)
    ]


def copies_of(config: RunConfig, *, allow_mismatch: bool = False) -> Copies | None:
    """The place of the run's copies, which refuses another run's; None without one.

    Raises:
        ValueError: If the scheme's package is not installed.
    """

    def other_run(stored: Path) -> list[str]:
        found = differences(stored, config)
        return [line for line in found if not (allow_mismatch and line.startswith(DATA))]

    return None if config.checkpoint.copy_to is None else Copies(config.checkpoint.copy_to, other_run)


def without_secrets(config: RunConfig) -> RunConfig:
    """The configuration as it may be kept: passwords and signatures in addresses are three stars.

    So a run that goes on under a fresh signature is the same run.
    """

    def masked(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: masked(value) for key, value in part.items()}
        if isinstance(part, list):
            return [masked(value) for value in part]
        return shown(part) if isinstance(part, str) and "://" in part else part

    tree = as_tree(config)
    changed = masked(tree)
    return config if changed == tree else RunConfig.model_validate(changed)


def record_start(folder: Path, config: RunConfig) -> None:
    """Make the run folder and write down what is run, once everything that can be wrong has been looked at."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the run folder {folder} cannot be made ({error.strerror}); name another with run=DIR"
        ) from error
    write_config(without_secrets(config), folder / CONFIG)
    (folder / COMMAND).write_text(shown(_command(sys.argv)) + "\n")
    (folder / ENVIRONMENT).write_text(json.dumps(environment(), indent=1) + "\n")
    (folder / STOPPED).unlink(missing_ok=True)


def _command(arguments: Sequence[str]) -> str:
    """A command line, without where this machine keeps clipkit.

    >>> _command(["/home/me/venv/bin/clipkit", "fit", "my run.yaml"])
    "clipkit fit 'my run.yaml'"
    """
    program = Path(arguments[0])
    ours = program.name == "clipkit" or program.parts[-2:] == ("clipkit", "__main__.py")
    return shlex.join(["clipkit" if ours else str(program), *arguments[1:]])


def find_resume(folder: Path, resume: str, copies: Copies | None = None) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is to be said about it: each newer one that was passed over, a copy that was fetched.

    Args:
        folder: The run folder; a copy is fetched into it.
        resume: ``auto``, ``never``, a checkpoint folder, or the URL of a copy or of a run's copies.
        copies: The run's copies: where the folder has no checkpoint, ``auto`` goes on from the newest of them.

    Raises:
        ValueError: If the named checkpoint is none, or does not verify; if the copies are another run's, or needed and out of reach.
    """
    checkpoints = folder / "checkpoints"
    if "://" in resume:
        return _fetch(resume, checkpoints)
    if resume not in ("auto", "never"):
        return _named(resume), []
    found, passed_over = newest(checkpoints) if resume == "auto" else (None, [])
    said = [f"{_PASSED_OVER} {line}" for line in passed_over]
    if copies is None:
        return found, said
    try:
        copies.claim()
        if resume == "never" and copies.steps():
            raise ValueError(f"checkpoint.copy_to: {copies.url} holds copies of a run already; name another place")
        if resume == "auto" and found is None:
            found, more = _fetch(copies.url, checkpoints) if copies.steps() else (None, [])
            said += more
    except ValueError:
        raise
    except Exception as error:  # where the folder has one, the next copy says what is the matter
        if found is None:
            raise refused(copies.url, error) from None
    return found, said


def _fetch(url: str, checkpoints: Path) -> tuple[Path | None, list[str]]:
    try:
        place, step = place_of(url)
        copies = Copies(place)
        if step is not None:
            return copies.get(step, checkpoints), [f"fetched {place}/{step}"]
        found, passed_over = copies.newest(checkpoints)
    except CheckpointError:
        raise
    except ValueError as error:
        raise ValueError(f"--resume {shown(url)}: {error}") from None
    except Exception as error:
        raise refused(url, error) from None
    said = [f"{_PASSED_OVER} {line}" for line in passed_over]
    if found is None:
        raise ValueError(f"{shown(url)}: no copy of a checkpoint there" + "".join(f"\n  {line}" for line in said))
    return found, [*said, f"fetched {place}/{found.name}"]


def _named(resume: str) -> Path:
    chosen = Path(resume)
    if not (chosen / INFO).is_file():
        raise ValueError(
            f"--resume {resume}: no checkpoint there ({INFO} is missing); give auto, never or RUN/checkpoints/STEP"
        )
    if reason := verify(chosen):
        raise CheckpointError(f"--resume {resume}: not usable, {reason}; name another checkpoint")
    return chosen


def check_weights(checkpoint: Path, own: Mapping[str, Tensor]) -> None:
    """Whether a checkpoint holds the weights of this model: a model's file may have changed under its name.

    Args:
        checkpoint: The checkpoint to go on from.
        own: The weights of the model in hand.

    Raises:
        ValueError: If names or shapes differ.
    """
    there, here = shapes(checkpoint), {name: tuple(tensor.shape) for name, tensor in own.items()}
    different = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{checkpoint} holds another model: {len(different)} of {len(here)} weights differ, the first is {name}, "
            f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} here; "
            "go on with the model that it was made with, or start anew with another run=DIR"
        )


def finished_step(checkpoint: Path | None) -> tuple[int, int]:
    """Step of a checkpoint and steps of its run, (0, -1) without one."""
    if checkpoint is None:
        return 0, -1
    info = json.loads((checkpoint / INFO).read_text())
    return int(info["step"]), int(info["steps"])


def data_state(checkpoint: Path) -> dict[str, Any]:
    """State of the data in a checkpoint: position, seed, batch size, fingerprints."""
    found: dict[str, Any] = json.loads((checkpoint / INFO).read_text())["lightning"]["ShardDataModule"]
    return found


def recorded_plugin(checkpoint: Path) -> dict[str, str] | None:
    """Module and hash of the plugin that a checkpoint's run was made with."""
    found: dict[str, str] | None = json.loads((checkpoint / INFO).read_text()).get("plugin")
    return found


def recorded_micro_batch(checkpoint: Path) -> dict[str, Any] | None:
    """The micro-batch that a checkpoint's run trained with (``pairs``, None for none) and its ``ranks``."""
    found: dict[str, Any] | None = json.loads((checkpoint / INFO).read_text()).get("micro_batch")
    return found


def owes_evaluation(checkpoint: Path) -> bool:
    """Whether a signal kept the run from evaluating this checkpoint's step."""
    return bool(json.loads((checkpoint / INFO).read_text())["lightning"].get("owed_evaluation", False))


def write_stopped(folder: Path, **fields: Any) -> None:
    """Leave word of why the run stopped; the file is replaced whole."""
    temporary = folder / f"{STOPPED}.{os.getpid()}"
    temporary.write_text(json.dumps(fields) + "\n")
    os.replace(temporary, folder / STOPPED)


def write_stopped_early(folder: Path, config: RunConfig, reason: str) -> None:
    """The same for a run that a signal ended before its ranks had met, unless the folder is somebody else's."""
    with contextlib.suppress(OSError, ValueError):
        check_folder(folder, config, fresh=False, allow_mismatch=True)
        folder.mkdir(parents=True, exist_ok=True)
        found, _ = newest(folder / "checkpoints")
        step, steps = finished_step(found)
        if step != steps:
            write_stopped(folder, reason=reason, step=step, steps=max(steps, 0), code=STOPPED_CODE)


def stop_rule(config: RunConfig) -> dict[str, Any] | None:
    """The early stop that a configuration asks for, as ``stopped.json`` holds it."""
    return None if config.evaluate.stop is None else config.evaluate.stop.model_dump()


def stopped_early(folder: Path, config: RunConfig) -> str | None:
    """Why the run ended before its length, if it did so by this very rule (with another or none it may go on): rank 0's answer."""
    word: dict[str, Any] = {}
    if distributed.rank() == 0 and (folder / STOPPED).is_file():
        word = json.loads((folder / STOPPED).read_text())
    word = distributed.gather_json(word)[0]
    return str(word["reason"]) if word.get("code") == 0 and word.get("rule") == stop_rule(config) else None


def environment() -> dict[str, Any]:
    """Versions and platform of this process."""
    names = (
        "torch",
        "torchvision",
        "lightning",
        "open_clip_torch",
        "timm",
        "webdataset",
        "numpy",
        "pillow",
        "pydantic",
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in names},
        "clipkit": _version(DISTRIBUTION),
    }


def default_folder(config_path: str | Path) -> Path:
    """``runs/CONFIG_STEM``."""
    return Path("runs") / Path(config_path).stem


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
