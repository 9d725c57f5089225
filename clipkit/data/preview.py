"""Some samples drawn evenly over the shards, read as training reads them, to be looked at by a person."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clipkit.config.json_text import parse_json
from clipkit.data.audit import describe, image_bytes, open_shard
from clipkit.data.draws import permutation
from clipkit.data.images import MOST_BYTES, BadSample, decode_image
from clipkit.data.index import load_index
from clipkit.data.source import Place
from clipkit.data.stages import IMAGE, Transform, transformed
from clipkit.data.tar import ShardError
from clipkit.data.values import captions, label

_MOST_METADATA = 1 << 20
_SHARDS, _SAMPLES = range(2)  # what a draw is for, after the seed in its key


@dataclass
class Shown:
    """One sample as it is shown; texts are as they were found and must be escaped.

    Args:
        shard: Path of its shard.
        key: Its key; empty for a shard that cannot be read at all.
        image: RGB pixels uint8 (3, H, W), None if it has none that can be decoded.
        facts: Format, size and the like, in words of ours.
        captions: All that it has.
        metadata: Keys and values of its JSON, and its label.
        faults: Why training could not use it; empty if it can.
        views: The picture as training may see it, uint8 (V, 3, H, W).
    """

    shard: str
    key: str
    image: Tensor | None = None
    facts: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    views: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """How a picture is changed for training.

    Args:
        transform: The changes.
        seed: Of the run.
        count: Views of each picture.
    """

    transform: Transform
    seed: int
    count: int = 3

    def of(self, image: Tensor, number: int) -> Tensor:
        """Views of the sample of a number, as positions ``number * count`` and on would have them."""
        positions = np.arange(number * self.count, (number + 1) * self.count)
        return transformed(self.transform, IMAGE, [image] * self.count, seed=self.seed, positions=positions)


def draw(
    shards: Sequence[str],
    fields: Mapping[str, tuple[Place, ...]],
    *,
    samples: int,
    seed: int,
    cache: Path | None,
    views: Views | None = None,
) -> list[Shown]:
    """Draw samples: as many of each shard as of any other, as far as it has them.

    Args:
        shards: Paths.
        fields: Per field where its value may be.
        samples: How many at most.
        seed: Of the draw.
        cache: Folder for indexes that cannot be kept beside the shards.
        views: Changed pictures to show too.

    Returns:
        The samples, those that cannot be used first.
    """
    shown: list[Shown] = []
    order = permutation(len(shards), seed, _SHARDS).tolist()
    left = samples
    for number, shard in enumerate(order):
        share = -(-left // (len(order) - number))  # what a small shard lacks, the later ones give
        if share == 0:
            break
        found = _of_shard(shards[shard], fields, share, (seed, _SAMPLES, shard), cache)
        left -= len(found)
        shown += found
    shown.sort(key=lambda sample: (not sample.faults, sample.shard, sample.key))
    for number, sample in enumerate(shown):
        if views is not None and sample.image is not None:
            sample.views = views.of(sample.image, number)
    return shown


def _of_shard(
    path: str, fields: Mapping[str, tuple[Place, ...]], count: int, key: tuple[int, ...], cache: Path | None
) -> list[Shown]:
    every = {**fields, "metadata": (Place("json"),)}
    try:
        names = load_index(path, cache)
        with closing(open_shard(path, every, cache)) as reader:
            shown = []
            for number in permutation(len(names), *key)[:count].tolist():
                sample = Shown(path, names.name(number))
                shown.append(sample)
                try:
                    members = reader.members(0, 0, number, MOST_BYTES)
                except BadSample as error:
                    sample.faults.append(str(error))
                    continue
                _fill(sample, members, fields)
            return shown
    except ShardError as error:
        return [Shown(path, "", faults=[str(error)])]


def _fill(sample: Shown, members: Mapping[str, bytes], fields: Mapping[str, tuple[Place, ...]]) -> None:
    for name, take in (("text", _captions), ("label", _label), ("image", _image)):
        if name not in fields:
            continue
        try:
            take(sample, members, fields[name])
        except BadSample as error:
            sample.faults.append(str(error))
    taken = {place.key for places in fields.values() for place in places if place.extension == "json"}
    held = _json(members.get("json", b""))
    sample.metadata |= {name: _text(value) for name, value in held.items() if name not in taken}


def _captions(sample: Shown, members: Mapping[str, bytes], places: Sequence[Place]) -> None:
    sample.captions = captions(members, places)


def _label(sample: Shown, members: Mapping[str, bytes], places: Sequence[Place]) -> None:
    sample.metadata["label (hash)"] = str(label(members, places))


def _image(sample: Shown, members: Mapping[str, bytes], places: Sequence[Place]) -> None:
    data = image_bytes(members, places)
    sample.facts.append(f"{len(data):,} bytes")
    sample.image = decode_image(data)
    kind, traits = describe(data)
    height, width = sample.image.shape[1:]
    sample.facts[:0] = [f"{width} × {height}", kind]
    sample.facts += [name.replace("_", " ") for name in traits]


def _json(data: bytes) -> dict[str, Any]:
    """A sample's JSON object, or nothing: it is shown, not needed."""
    if len(data) > _MOST_METADATA:
        return {}
    try:
        held = parse_json(data)
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
