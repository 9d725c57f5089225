"""Where an exploit is tried: a folder, a payload that leaves a marker, and clipkit's command line with all that it says."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import yaml

from benchmarks.common import peak_growth
from clipkit.cli.main import run
from tests.conftest import TINY_MODEL, write_shard

CANARY = "sk-canary-7f3a9c"
"""Stands for a secret; whatever holds it where it should not is harm."""
PICKLE_NAMES = ("pyd", "pickle", "pkl", "pth", "pyd.gz")
"""Members that webdataset's ``decode`` unpickles."""


class Payload:
    """Unpickled, it leaves the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


class World:
    """What all exploits share and none may change: a model, good shards, and a trained run.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "tiny.json"
        self.model.write_text(json.dumps(TINY_MODEL))
        self.shard = write_shard(folder / "good.tar", 16)
        self.config = self.write_config(folder / "run.yaml")
        self.run = folder / "run"
        assert run(["fit", str(self.config), f"run={self.run}"]) == 0
        self.step = self.run / "checkpoints" / "2"

    def write_config(self, path: Path, **overrides: object) -> Path:
        """A configuration of two steps of eight pairs."""
        config = {
            "model": str(self.model),
            "data": {"train": {"squares": {"shards": str(self.shard)}}, "batch_size": 8, "workers": 0},
            "loss": "infonce",
            "optim": {"warmup": "1 steps"},
            "trainer": {"length": "2 steps", "devices": 1, "accelerator": "cpu"},
            "checkpoint": {"every": "1 steps"},
            "logging": {"every": "1 steps"},
        } | overrides
        path.write_text(yaml.safe_dump(config))
        return path


class Lab:
    """One exploit's own folder.

    Args:
        folder: Empty.
        world: What it may use.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.marker = folder / "marker"
        self.said = ""

    def fired(self) -> bool:
        """Whether the payload did its work; the marker is taken away."""
        there = self.marker.exists()
        self.marker.unlink(missing_ok=True)
        return there

    def harmed(self, yes: object = True) -> None:
        """Leave the marker where harm is no file of its own: memory taken, a secret told, a file out of its folder."""
        if yes:
            self.marker.touch()

    def payload(self) -> Payload:
        """An object that leaves the marker as soon as it is unpickled."""
        return Payload(self.marker)

    def cli(self, *arguments: object) -> int:
        """Run clipkit in this process; the exit code. What it said is ``said``."""
        out = io.StringIO()
        handler = logging.StreamHandler(out)
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = run([str(argument) for argument in arguments])
        finally:
            logging.getLogger().removeHandler(handler)
        self.said = out.getvalue()
        return code

    def refused(self, *arguments: object, words: str = "") -> None:
        """A command line that must end as bad input does: code 2, a few words, no traceback."""
        code = self.cli(*arguments)
        assert code == 2, (arguments, code, self.said[-2000:])
        assert "Traceback" not in self.said, (arguments, self.said[-2000:])
        assert words in self.said, (words, self.said[-2000:])

    def passed(self, *arguments: object, words: str = "") -> None:
        """A command line that must do its work all the same."""
        code = self.cli(*arguments)
        assert code == 0, (arguments, code, self.said[-2000:])
        assert words in self.said, (words, self.said[-2000:])

    def grows(self, most: float, work: Callable[[], object]) -> bool:
        """Whether work takes more than so many megabytes."""
        return peak_growth(work) > most

    def tar(self, name: str, members: Mapping[str, bytes]) -> Path:
        """A tar of files."""
        with tarfile.open(self.folder / name, "w") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return self.folder / name

    def config(self, name: str = "evil.yaml", **overrides: object) -> Path:
        """A configuration like the world's, but for some keys."""
        return self.world.write_config(self.folder / name, **overrides)

    def shard_set(self, shard: Path, caption: bytes = b"a\n") -> Path:
        """A retrieval set in CLIP_benchmark's layout around a shard."""
        folder = self.folder / "set"
        (folder / "test").mkdir(parents=True, exist_ok=True)
        (folder / "test" / "nshards.txt").write_text("1")
        (folder / "dataset_type.txt").write_text("retrieval")
        (folder / "test" / "0.tar").write_bytes(shard.read_bytes())
        return folder


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Some environment variables for a while."""
    with mock.patch.dict(os.environ, variables):
        yield


def raises(kind: type[BaseException] | tuple[type[BaseException], ...], work: Callable[[], object]) -> str:
    """What an error of a kind says; anything else is a failure."""
    try:
        work()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind}")


def allocated(work: Callable[[], object]) -> float:
    """Megabytes that Python and numpy hold at the most while work runs: exact where much comes in small pieces."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def seconds(work: Callable[[], object]) -> float:
    """How long work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def fires(work: Callable[[], object]) -> None:
    """Let a plain library work on a payload; what it says afterwards does not matter."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            work()
    except KeyboardInterrupt:
        raise
    except BaseException:  # torch's CheckpointException is no Exception
        pass


@dataclass(frozen=True)
class Exploit:
    """An attack, tried twice.

    Args:
        name: What it is.
        control: Goes through the plain library, where it must do its harm.
        ours: Goes through clipkit: asserts what is answered; harm shows in ``Lab.fired``.
    """

    name: str
    control: Callable[[Lab], object]
    ours: Callable[[Lab], object]
