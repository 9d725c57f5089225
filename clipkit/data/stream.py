"""Shards that cannot be indexed, read from front to back: compressed tars. Inexact, and said to be.

Each reader (a worker of a rank) goes through its part of a seeded order of the shards, epoch after epoch without end, and mixes
what it reads in a seeded buffer: every rank has batches of equal size, the same ones in every run of as many ranks and workers.
What the plan promises beyond that does not hold: a resumed run starts at another seeded place, readers end their epochs at
different times, and other numbers of ranks or workers see other orders.

Tars are opened here and given to webdataset's grouping and shuffling as streams: neither its openers, which run commands, nor
its decoders, which unpickle, see any name or byte of them.
"""

from __future__ import annotations

import gzip
import logging
import os
import random
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import get_worker_info
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys

from clipkit.data.account import EpochAccount
from clipkit.data.catalogue import Catalogue
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.dataset import BadRecord, Request, Sample, ShardDataset
from clipkit.data.draws import below, permutation
from clipkit.data.images import BadSample, Decode
from clipkit.data.index import split_name
from clipkit.data.plan import Ints, Plan, Rows
from clipkit.data.source import Source
from clipkit.data.tar import BLOCK, ShardError
from clipkit.data.urls import is_remote, shown
from clipkit.data.values import hash64

SHUFFLED = 1000
"""Samples that a reader holds, as files of their own size, to draw the next one from."""
PROBED = 100
NO_EPOCH = -1
_ENDLESS = 1 << 40  # samples of a source, as far as the plan needs to know
_SHARDS, _BUFFER = 101, 102  # what a draw is for, after the seed in its key; the plan's own are below
_BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError)
_log = logging.getLogger(__name__)


class Streamed(NamedTuple):
    """The next sample of a stream: its members, or why it has none."""

    path: str
    key: str
    members: dict[str, Any]


def read_stream(path: str, wanted: frozenset[str], largest: int) -> Iterator[Streamed]:
    """The samples of one tar, plain or gzipped, as they come.

    Args:
        path: A file of this machine.
        wanted: Extensions of the members that are read; the others are passed over.
        largest: Bytes above which a member is not read.

    Yields:
        Samples. A ``BadSample`` stands in place of a member too large, and alone (under no extension) for what is left of a
        tar that cannot be read on.
    """
    try:
        with open(path, "rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            tail = _Tail(gzip.GzipFile(fileobj=file) if packed else file)
            for sample in group_by_keys(
                _members(tail, path, wanted, largest), keys=_key, suffixes=set(wanted), handler=_twice
            ):
                members = {name: value for name, value in sample.items() if name in wanted}
                yield Streamed(path, sample["__key__"], members)
            tail.check_end()
    except _BROKEN as error:
        yield Streamed(path, "", {"": BadSample("shard", f"cannot be read on: {error}")})


class _Tail:
    """A stream that ends loudly.

    Python's tarfile takes a tar that is cut between two members for whole, and reads on at the end of a file for as long as a
    member claims to be.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._last = b""
        self._beyond = 0

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(size)
        self._beyond += not data
        if self._beyond > 2:
            raise EOFError("it ends inside a member")
        self._last = (self._last + data)[-2 * BLOCK :]
        return data

    def check_end(self) -> None:
        while rest := self.read(1 << 16):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there is data behind the end-of-archive marker")
        if len(self._last) < BLOCK or self._last[-BLOCK:].strip(b"\0"):
            raise tarfile.ReadError("it ends without its end marker, so it was cut short")


def _members(file: _Tail, path: str, wanted: frozenset[str], largest: int) -> Iterator[dict[str, Any]]:
    """The files of a tar as webdataset's grouping takes them; it would read members of any size itself."""
    with tarfile.open(fileobj=file, mode="r|") as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members = []  # else it keeps every header
            if not member.isreg():
                continue
            name = member.name
            data: Any = b""
            if _key(name)[1] in wanted:
                data = BadSample("too_large", f"{member.size:,} bytes; at most {largest:,} are read")
                if member.size <= largest:
                    held = tar.extractfile(member)
                    assert held is not None
                    data = held.read()
            yield {"fname": name, "data": data, "__url__": path}


def _key(name: str) -> tuple[str | None, str]:
    parts = split_name(name.encode("utf-8", "surrogateescape"))
    return (None, "") if parts is None else (parts[0].decode(errors="backslashreplace"), parts[1])


def _twice(error: Exception) -> bool:
    """A sample with two members of one kind: the rest of this tar cannot be told apart."""
    raise tarfile.ReadError(str(error.args[0])) from error


class StreamReader:
    """What a worker reads from, in place of ``ShardReader``: asked for any sample of a source, it gives the next one.

    Args:
        shards: Per source the paths.
        extensions: Per source the members that are read.
        seed: The run's seed.
        rank: This rank.
        world: How many ranks there are.
    """

    def __init__(
        self, shards: Sequence[Sequence[str]], extensions: Sequence[frozenset[str]], seed: int, rank: int, world: int
    ) -> None:
        self.shards, self.extensions, self.seed = [list(paths) for paths in shards], list(extensions), seed
        self.rank, self.world = rank, world
        self.start = 0
        """The run's position where reading began: another one is another place in the streams."""
        self.now = Streamed("", "", {})
        self.ids: list[int] = []
        """Of the samples of the batch that is being made."""
        self.passed: list[BadRecord] = []
        """Those that were passed over on the way."""
        self._streams: dict[int, Iterator[Streamed]] = {}
        self._without: dict[int, int] = {}  # tars in a row that gave no sample

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_streams": {}}  # each worker has its own

    def close(self) -> None:
        """Begin anew."""
        self._streams.clear()

    def key(self, source: int, shard: int, sample: int) -> str:
        """The key of the sample that was given last."""
        return self.now.key

    def members(self, source: int, shard: int, sample: int, largest: int) -> dict[str, bytes]:
        """The next sample of a source.

        Raises:
            BadSample: If it cannot be used, or the rest of its tar cannot.
            ShardError: If no tar of the source gives a sample.
        """
        if source not in self._streams:
            self._streams[source] = self._endless(source, largest)
        self.now = next(self._streams[source])
        for name, value in self.now.members.items():
            if isinstance(value, BadSample):
                raise BadSample(value.cause, f".{name}: {value.detail}" if name else value.detail)
        return self.now.members

    def _endless(self, source: int, largest: int) -> Iterator[Streamed]:
        """Epoch after epoch, each mixed by itself: what a reader goes through, it goes through as often as all the rest."""
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        reader, readers = self.rank * workers + own, self.world * workers
        paths = self.shards[source]
        for epoch in count():
            key = (self.seed, source, self.start, epoch)
            if len(paths) >= readers:
                order = permutation(len(paths), _SHARDS, *key)[reader::readers]
            else:
                order = permutation(len(paths), _SHARDS, *key, reader)
            rng = random.Random(below(1 << 62, _BUFFER, *key, reader))
            yield from shuffle(SHUFFLED, rng=rng)(self._samples([paths[shard] for shard in order], source, largest))

    def _samples(self, paths: Sequence[str], source: int, largest: int) -> Iterator[Streamed]:
        for path in paths:
            good = 0
            for sample in read_stream(path, self.extensions[source], largest):
                good += "" not in sample.members
                yield sample
            self._without[source] = 0 if good else self._without.get(source, 0) + 1
            # readers of a few tars each may meet broken ones for a while
            if self._without[source] > 2 * len(self.shards[source]) + 100:
                raise ShardError(f"{path}: neither it nor the tars before it hold a sample; are these WebDataset tars?")


class StreamPlan(Plan):
    """Sources mixed by their weights as in ``Plan``; which sample comes is the reader's to say.

    Args:
        weights: Per source its weight.
        seed: The run's seed.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        super().__init__([[_ENDLESS]] * len(weights), weights, seed)

    @property
    def epoch_samples(self) -> None:
        """Nobody has counted them."""
        return

    def rows(self, positions: Ints) -> Rows:
        """The sources of some positions (P,); nothing else is known beforehand."""
        positions = np.asarray(positions, np.int64)
        unknown = np.zeros_like(positions)
        return Rows(positions, self.ordinals(positions)[0], unknown, unknown, unknown, unknown)

    def substitute(self, position: int, batch_start: int, batch_size: int, attempt: int = 0) -> Rows | None:
        """The next sample of the same source."""
        return self.rows(np.array([position]))


class StreamDataset(ShardDataset):
    """Batches of what the streams give, in the form of ``ShardDataset``'s; every sample that is passed over is recorded."""

    reader: StreamReader  # type: ignore[assignment]

    def read(self, source: int, shard: int, sample: int, draw: float, how: Decode | None = None) -> Sample:
        """The next sample of a source, decoded.

        Raises:
            BadSample: If it cannot be used.
        """
        try:
            found = super().read(source, shard, sample, draw, how)
        except BadSample as error:
            now = self.reader.now
            self.reader.passed.append(
                BadRecord(-1, self.names[source], NO_EPOCH, now.path, now.key, error.cause, error.detail)
            )
            raise
        self.reader.ids.append(
            hash64(f"{os.path.basename(self.reader.now.path)}\n{found.key}".encode(errors="replace"))
        )
        return found

    def __getitems__(self, request: Request) -> dict[str, Any]:
        """A batch of this rank; ``id`` is the hash of the tar's name and the key."""
        self.reader.ids, self.reader.passed = [], []
        batch = super().__getitems__(request)
        batch["id"] = batch["id"].new_tensor(self.reader.ids)
        batch["bad"] = [record._replace(position=request.start) for record in self.reader.passed]
        return batch


class StreamDataModule(ShardDataModule):
    """``ShardDataModule`` over streams. Validation sources are indexed as ever."""

    dataset_class = StreamDataset
    resumed = (
        "stream: resume is not exact: reading begins at another seeded place, so samples come again or are left out"
    )

    def _open_train(self) -> tuple[list[Catalogue], Plan]:
        catalogues = []
        for source in self.train:
            sizes = [b"%d" % os.stat(path).st_size for path in source.shards]  # all that is known without reading
            paths = np.array([os.fsencode(path) for path in source.shards], np.bytes_)
            catalogues.append(Catalogue(paths, np.zeros(len(sizes), np.int64), np.array(sizes, np.bytes_)))
            readers = self.world * max(self.workers, 1)
            if self.rank == 0 and len(source.shards) < readers:
                text = (
                    "stream: source %r has %d tars for %d readers: each goes through all of them in an order of its own"
                )
                _log.warning(text + ", so equal samples may meet in a batch", source.name, len(source.shards), readers)
        return catalogues, StreamPlan([source.weight for source in self.train], self.seed)

    def _check_train(self) -> None:
        """Give the set its reader, and see that each source has a usable sample among its first ones."""
        shards = [source.shards for source in self.train]
        reader = StreamReader(shards, self.dataset.reader.extensions, self.seed, self.rank, self.world)
        self.dataset.reader = reader  # type: ignore[assignment]
        for number, source in enumerate(self.train):
            for _ in range(PROBED):
                try:
                    self.dataset.read(number, 0, 0, 0.0)
                    break
                except BadSample:
                    continue
            else:
                causes = "; ".join(sorted({f"{bad.cause}: {bad.detail}" for bad in reader.passed})[:3])
                fields = {name: list(places) for name, places in source.fields.items()}
                raise ValueError(
                    f"source {source.name!r}: none of the first {PROBED} streamed samples can be used ({causes}). "
                    f"Its fields are read from {fields}; name the right ones in `fields`"
                )

    def _begin(self) -> None:
        assert isinstance(self.dataset.reader, StreamReader)
        self.dataset.reader.start = self.position
        self.dataset.reader.close()

    def report(self) -> dict[str, list[EpochAccount]]:
        """Per source one line: what was given and what was passed over; epochs cannot be told apart."""
        bad = self._bad()
        accounts = {}
        for source, trained in zip(self.train, self.plan.consumed(self.position), strict=True):
            causes = dict(bad.get(source.name, {}).get(str(NO_EPOCH), {}))
            seen = trained + sum(causes.values())
            accounts[source.name] = [EpochAccount(NO_EPOCH, seen, 0, 0, seen, seen, trained, causes)] if seen else []
        return accounts


def data_module(train: Sequence[Source], val: Sequence[Source]) -> type[ShardDataModule]:
    """The data module that these sources need.

    Raises:
        ValueError: If some are streamed and others are not, or validation is, or a stream is remote.
    """
    streamed = [source.name for source in train if source.stream]
    for source in train:
        if source.stream and (url := next((path for path in source.shards if is_remote(path)), None)):
            raise ValueError(
                f"source {source.name!r}: {shown(url)} is remote, and streams are read from files of this machine; copy the tars "
                "here, or decompress them and leave out `stream`: remote shards are indexed when they are fetched"
            )
    if any(source.stream for source in val):
        raise ValueError("data.val: sources for validation are read by index, so `stream: true` is not for them")
    if streamed and len(streamed) < len(train):
        indexed = [source.name for source in train if not source.stream]
        raise ValueError(
            f"data.train: {', '.join(streamed)} stream and {', '.join(indexed)} do not; a mix of both would be exact for neither. "
            "Stream all of them, or decompress the tars of the first so that they can be indexed"
        )
    return StreamDataModule if streamed else ShardDataModule
