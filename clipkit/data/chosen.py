"""The samples of a source that its selection plans, in a file that all processes of a machine share."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipkit.config.json_text import parse_json
from clipkit.data.atomic import write_atomically
from clipkit.data.index import Ints

_log = logging.getLogger(__name__)

Samples = NDArray[np.uint32]


class Chosen:
    """Which samples of every shard are planned, repeats included.

    Args:
        counts: Planned of each shard (S,).
        filtered: How many were left out, by cause.
        repeated: How many of the planned are copies beyond a sample's first.
        samples: Numbers of the planned samples in their shards, shard after shard, each shard's sorted (sum of counts,).
        file: Where ``samples`` lie, 4 bytes each; None holds them in memory.
    """

    def __init__(
        self, counts: Ints, filtered: dict[str, int], repeated: int, samples: Samples, file: Path | None = None
    ) -> None:
        self.counts, self.filtered, self.repeated, self.samples, self.file = counts, filtered, repeated, samples, file
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        digest = hashlib.blake2b(np.ascontiguousarray(counts).tobytes(), digest_size=16)
        for start in range(0, len(samples), 1 << 22):
            digest.update(samples[start : start + (1 << 22)].tobytes())
        self.fingerprint = f"{len(samples)}-{digest.hexdigest()}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self.file is None else {**self.__dict__, "samples": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = dict(state)
        if self.file is not None:
            self.samples = np.memmap(self.file, "<u4", "r")

    def physical(self, shard: int, rank: int) -> int:
        """The sample of a shard that is planned as its ``rank``-th."""
        return int(self.samples[int(self.starts[shard]) + rank])


def load_chosen(place: Path) -> Chosen | None:
    """What was chosen before; None if it was not kept, or not whole.

    Args:
        place: The file without its suffix: ``.u32`` are the samples, ``.json`` all else.
    """
    try:
        held = parse_json(place.with_suffix(".json").read_text())
        samples = np.memmap(place.with_suffix(".u32"), "<u4", "r")
        counts = np.array(held["counts"], np.int64)
        chosen = Chosen(counts, held["filtered"], held["repeated"], samples, place.with_suffix(".u32"))
        return chosen if chosen.fingerprint == held["fingerprint"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_chosen(
    place: Path | None, parts: Callable[[], Iterator[tuple[Samples, int]]], filtered: dict[str, int], kept: int
) -> Chosen:
    """Keep what is chosen, and give it back as it is read from there.

    Args:
        place: As for ``load_chosen``; None, or a folder that cannot be written, holds it in memory.
        parts: Gives, shard after shard, the planned samples, repeats included, and how many they are without them.
        filtered: How many samples were left out, by cause.
        kept: How many passed; those of weight 0 are not in ``parts``.
    """
    counts: list[int] = []
    distinct: list[int] = []

    def write(file: BinaryIO) -> None:
        for samples, different in parts():
            counts.append(len(samples))
            distinct.append(different)
            file.write(samples.astype("<u4").tobytes())

    def chosen(samples: Samples, file: Path | None) -> Chosen:
        left_out = filtered | ({"weight": kept - sum(distinct)} if sum(distinct) < kept else {})
        return Chosen(np.array(counts, np.int64), left_out, sum(counts) - sum(distinct), samples, file)

    if place is not None:
        file = place.with_suffix(".u32")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, write)
            found = chosen(np.memmap(file, "<u4", "r") if sum(counts) else np.empty(0, np.uint32), file)
            held = {"counts": counts, "filtered": found.filtered, "repeated": found.repeated}
            text = json.dumps(held | {"fingerprint": found.fingerprint})
            write_atomically(place.with_suffix(".json"), lambda into: into.write(text.encode()))
            return found
        except OSError as error:
            _log.warning("%s: the selection could not be kept (%s) and is made by every process", place.parent, error)
            counts.clear()
            distinct.clear()
    memory = io.BytesIO()
    write(memory)
    return chosen(np.frombuffer(memory.getvalue(), "<u4"), None)
