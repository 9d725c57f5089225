"""A request for planned samples to a batch: read, decode, substitute what is bad, augment, tokenise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipkit.data.catalogue import Catalogue
from clipkit.data.draws import CAPTION, uniforms
from clipkit.data.images import MOST_BYTES, BadSample, Decode, decode
from clipkit.data.node_cache import NodeCache
from clipkit.data.pixels import Pixels
from clipkit.data.plan import Ints, Rows
from clipkit.data.reader import ShardReader
from clipkit.data.source import TEACHER, Place, Source
from clipkit.data.stages import Stage, transformed
from clipkit.data.urls import shown
from clipkit.data.values import captions, find, hash64, label
from clipkit.data.vectors import Vector, stacked, vector

_MOST_SUBSTITUTES = 100


class Order(Protocol):
    """Positions to samples: the plan of training, or validation's plain order."""

    def rows(self, positions: Ints) -> Rows:
        """The samples at some positions (P,)."""
        ...

    def substitute(self, position: int, batch_start: int, batch_size: int, attempt: int = 0) -> Rows | None:
        """What stands in for a bad sample."""
        ...


class Request(NamedTuple):
    """What the sampler asks a worker for.

    Args:
        start: Position of the first sample of the batch of all ranks.
        size: Samples of that batch.
        rows: This rank's samples.
        stage: Number of the stage that the batch is in.
    """

    start: int
    size: int
    rows: Rows
    stage: int = 0


class BadRecord(NamedTuple):
    """A bad sample, in whose place another was given.

    Args:
        position: Its place in the run.
        source: Name of its source.
        epoch: Of its source.
        shard: Path of its shard.
        key: Its key.
        cause: One word.
        detail: What was found.
    """

    position: int
    source: str
    epoch: int
    shard: str
    key: str
    cause: str
    detail: str


class Sample(NamedTuple):
    """A sample that can be used; fields that its source has not are None."""

    key: str
    image: Pixels | None
    text: str | None
    label: int | None
    image_hash: int
    noted: tuple[str, ...] = ()
    vectors: Mapping[str, Vector] = {}


def _stack(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


class ShardDataset(Dataset[dict[str, Any]]):
    """Map-style set over all shards; holds no state that a batch depends on.

    Args:
        sources: The sources.
        catalogues: What each holds.
        order: The order that positions follow; asked for substitutes.
        seed: The run's seed.
        stages: How samples become a batch, by the request's stage.
        cache: Folder for sidecars that cannot be kept beside the shards.
        node_cache: Where remote shards are kept.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source],
        catalogues: Sequence[Catalogue],
        order: Order,
        seed: int,
        stages: Sequence[Stage],
        cache: Path | None,
        node_cache: NodeCache | None = None,
    ) -> None:
        self.names = [source.name for source in sources]
        self.first_caption = [source.captions == "first" for source in sources]
        self.places: list[dict[str, tuple[Place, ...]]] = [source.places() for source in sources]
        self.catalogues = list(catalogues)
        self.order = order
        self.seed = seed
        self.stages = list(stages)
        wanted = [frozenset(place.extension for every in places.values() for place in every) for places in self.places]
        self.reader = ShardReader(catalogues, wanted, cache, node_cache)

    def read(self, source: int, shard: int, sample: int, draw: float, how: Decode | None = None) -> Sample:
        """One sample, decoded.

        Args:
            source: Index of the source.
            shard: Index of the shard.
            sample: Index of the sample among those of its shard that are planned.
            draw: In [0, 1), chooses among several captions, where the source does not take the first.
            how: How the image becomes pixels.

        Raises:
            BadSample: If it cannot be used.
            ShardError: If its shard cannot be read.
        """
        places = self.places[source]
        members = self.reader.members(source, shard, sample, MOST_BYTES)
        draw = 0.0 if self.first_caption[source] else draw
        texts = captions(members, places["text"]) if "text" in places else []
        text = texts[int(draw * len(texts))] if texts else None
        group = label(members, places["label"]) if "label" in places else None
        image, image_hash = None, 0
        noted: tuple[str, ...] = ()
        if "image" in places:
            found = find(members, places["image"])
            if found is None:
                wanted = " or ".join(f".{place.extension}" for place in places["image"])
                raise BadSample("no_image", f"no member {wanted}")
            (image, noted), image_hash = decode(found[1], how), hash64(found[1])
        stored = {name: at for name, at in places.items() if name.startswith(TEACHER)}
        vectors = {name: vector(members, at, draw, len(texts)) for name, at in stored.items()}
        return Sample(self.reader.key(source, shard, sample), image, text, group, image_hash, noted, vectors)

    def _record(self, row: Rows, error: BadSample) -> BadRecord:
        source, shard = int(row.source[0]), int(row.shard[0])
        return BadRecord(
            position=int(row.position[0]),
            source=self.names[source],
            epoch=int(row.epoch[0]),
            shard=shown(self.catalogues[source].path(shard)),
            key=self.reader.key(source, shard, int(row.sample[0])),
            cause=error.cause,
            detail=error.detail,
        )

    def _read_or_substitute(self, request: Request, row: Rows, draw: float) -> tuple[Sample, Rows, BadRecord | None]:
        """The sample of one row, or its substitute, with its own row and the record of the bad one."""
        how = self.stages[request.stage].decode
        record = None
        given: Rows | None = row
        for attempt in range(_MOST_SUBSTITUTES):
            if given is None:
                break
            try:
                sample = self.read(int(given.source[0]), int(given.shard[0]), int(given.sample[0]), draw, how)
                return sample, given, record
            except BadSample as error:
                record = record or self._record(row, error)
            given = self.order.substitute(int(row.position[0]), request.start, request.size, attempt)
        assert record is not None
        text = f"source {record.source!r}: sample {record.key!r} of {record.shard} is bad ({record.cause}) and so is every "
        raise ValueError(text + "substitute that was tried for it; look at the source with `clipkit data check`")

    def __getitems__(self, request: Request) -> dict[str, Any]:
        """A batch of this rank: fields, ``id``, ``key``, ``position``, ``content``, ``bad``, ``noted``; labels and embeddings if there are."""
        rows, stage = request.rows, self.stages[request.stage]
        draws = uniforms(self.seed, rows.position, CAPTION, 1)[:, 0]
        samples, ids, bad = [], [], []
        noted: list[tuple[str, int, str]] = []
        for number, draw in enumerate(draws.tolist()):
            sample, given, record = self._read_or_substitute(request, rows.take(slice(number, number + 1)), draw)
            samples.append(sample)
            ids.append(int(given.id[0]))
            noted += [(self.names[int(given.source[0])], int(given.epoch[0]), cause) for cause in sample.noted]
            bad += [] if record is None else [record]
        content: dict[str, Tensor] = {}
        batch: dict[str, Any] = {
            "id": _stack(ids),
            "key": [sample.key for sample in samples],
            "position": request.start,
            "content": content,
            "bad": bad,
            "noted": noted,
        }
        images = [sample.image for sample in samples if sample.image is not None]
        texts = [sample.text for sample in samples if sample.text is not None]
        labels = [sample.label for sample in samples if sample.label is not None]
        if images:
            for field, transform in stage.images.items():
                batch[field] = transformed(transform, field, images, seed=self.seed, positions=rows.position)
            content["image"] = _stack([sample.image_hash for sample in samples])
        if texts:
            batch["text"] = stage.tokenize(texts)
            content["text"] = _stack([hash64(text.encode()) for text in texts])
        if labels:
            batch["label"] = _stack(labels)
        return batch | stacked([sample.vectors for sample in samples])
