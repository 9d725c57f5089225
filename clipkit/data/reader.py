"""Members of samples by ``pread``: open files and indexes in a bounded cache, nothing else remembered."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from clipkit.data.catalogue import Catalogue, remote_cache
from clipkit.data.images import BadSample
from clipkit.data.index import Ints, ShardIndex, Small, load_index, sidecar_path
from clipkit.data.node_cache import NodeCache, OpenedShard
from clipkit.data.remote_counts import COUNTED, forget_counts
from clipkit.data.tar import BLOCK, ShardError, pread
from clipkit.data.urls import is_remote, shown

MOST_OPEN = 256
MOST_HELD = (
    32 << 20
)  # bytes of their indexes: enough for the shards that 64 lanes of 10,000-sample shards are in at once
_LARGEST_GAP = 1 << 16  # members this close are read at once, what lies between them with them

_MOST_SMALL = (1 << 32) - 1


def _small(offset: Ints, length: Ints) -> tuple[Small, Small]:
    """Half the memory: data begins at a block, never the first, so that 0 can say that there is none."""
    return ((offset + BLOCK - 1) // BLOCK).astype(np.uint32), np.minimum(length, _MOST_SMALL).astype(np.uint32)


@dataclass(frozen=True)
class _OpenShard:
    path: str
    fd: int
    key: NDArray[np.bytes_]
    fields: dict[str, tuple[Small, Small]]
    check: Small  # of all headers that are read for a sample: their checks, xor'ed
    held: int


def _check_counted(path: str, index: ShardIndex, count: int, fingerprint: bytes) -> None:
    """Whether a shard is what the start counted; of some remote shards only the number of samples was known then."""
    if len(index) == count and (fingerprint.startswith(COUNTED) or index.fingerprint.encode() == fingerprint):
        return
    if is_remote(path):
        text = f"{shown(path)}: holds {len(index):,} samples in {index.size:,} bytes, its list beside it says {count:,}"
        cure = " and another content" if len(index) == count else ""
        raise ShardError(f"{text}{cure}; make that list anew (index.json, sizes.json or _stats.json)", shown(path))
    text = f"{path}: its content is not what was counted at the start; delete index.json beside it if the shard "
    raise ShardError(text + "was rewritten on purpose, and start again", path)


class ShardReader:
    """Reads samples of the shards of several sources.

    Args:
        catalogues: Per source its shards.
        extensions: Per source the members that are read.
        cache: Folder for sidecars that cannot be kept beside the shards.
        node_cache: Where remote shards are kept; None makes one in ``cache`` when the first is read.
    """

    def __init__(
        self,
        catalogues: Sequence[Catalogue],
        extensions: Sequence[frozenset[str]],
        cache: Path | None,
        node_cache: NodeCache | None = None,
    ) -> None:
        self.catalogues = list(catalogues)
        self.extensions = list(extensions)
        self.cache = cache
        self.node_cache = node_cache
        self._open: OrderedDict[tuple[int, int], _OpenShard] = OrderedDict()
        self._held = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict(), "_held": 0}  # descriptors mean nothing in another process

    def close(self) -> None:
        """Close every open shard."""
        while self._open:
            self._close_oldest()

    def _close_oldest(self) -> None:
        shard = self._open.popitem(last=False)[1]
        self._held -= shard.held
        os.close(shard.fd)

    def _shard(self, source: int, shard: int) -> _OpenShard:
        held = self._open.get((source, shard))
        if held is not None:
            self._open.move_to_end((source, shard))
            return held
        catalogue = self.catalogues[source]
        path = catalogue.path(shard)
        opened = self.open(path)
        index = opened.index
        try:
            _check_counted(path, index, int(catalogue.counts[shard]), bytes(catalogue.fingerprints[shard]))
        except ShardError:
            os.close(opened.fd)
            if self.node_cache is not None and is_remote(path):
                forget_counts(path, self.node_cache)
            raise
        fields = {name: _small(*span) for name, span in index.fields.items() if name in self.extensions[source]}
        check = np.zeros(len(index), np.uint32)
        for name in fields:
            check ^= index.checks[name]
        size = index.key.nbytes + check.nbytes + sum(column.nbytes for columns in fields.values() for column in columns)
        while self._open and (len(self._open) >= MOST_OPEN or self._held + size > MOST_HELD):
            self._close_oldest()
        held = _OpenShard(opened.path, opened.fd, index.key, fields, check, size)
        self._open[source, shard] = held
        self._held += size
        return held

    def _physical(self, source: int, shard: int, sample: int) -> int:
        """Where a planned sample lies among all of its shard."""
        chosen = self.catalogues[source].chosen
        return sample if chosen is None else chosen.physical(shard, sample)

    def open(self, path: str) -> OpenedShard:
        """A shard, brought to this machine if it is remote; the caller closes its descriptor.

        Raises:
            ShardError: If it cannot be had or indexed.
        """
        if not is_remote(path):
            index = load_index(path, self.cache)
            return OpenedShard(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), index)
        if self.node_cache is None:
            self.node_cache = remote_cache(self.cache)
        for number, held in list(self._open.items()):
            if os.fstat(held.fd).st_nlink == 0:  # evicted: its bytes leave the disk when the last process lets go of it
                self._open.move_to_end(number, last=False)
                self._close_oldest()
        return self.node_cache.open(path)

    def key(self, source: int, shard: int, sample: int) -> str:
        """The key of a sample."""
        return bytes(self._shard(source, shard).key[self._physical(source, shard, sample)]).decode(
            errors="backslashreplace"
        )

    def members(self, source: int, shard: int, sample: int, largest: int) -> dict[str, bytes]:
        """A sample's members that the source's fields name.

        Args:
            source: Index of the source.
            shard: Index of the shard.
            sample: Index of the sample among those of its shard that are planned.
            largest: Bytes above which a member is refused unread.

        Returns:
            Bytes by extension.

        Raises:
            BadSample: If a member is larger than ``largest``.
            ShardError: If the shard cannot be read, or is not what it was.
        """
        held, sample = self._shard(source, shard), self._physical(source, shard, sample)
        spans = []
        for name, (offsets, lengths) in held.fields.items():
            offset, length = int(offsets[sample]) * BLOCK, int(lengths[sample])
            if length > largest:
                raise BadSample("too_large", f".{name} of {length:,} bytes; at most {largest:,} are read")
            if offset:
                spans.append((offset, length, name))
        spans.sort()
        found: dict[str, bytes] = {}
        check = int(held.check[sample])
        while spans:
            run = [spans.pop(0)]
            while spans and spans[0][0] - sum(run[-1][:2]) <= _LARGEST_GAP:
                run.append(spans.pop(0))
            start, end = run[0][0] - BLOCK, sum(run[-1][:2])  # the header before it too
            data = pread(held.fd, end - start, start, held.path)
            for offset, length, name in run:
                at = offset - start
                check ^= crc32(data[at - BLOCK : at])
                found[name] = data[at : at + length]
        if check:
            raise _other_headers(held, sample, list(found))
        return found


def _other_headers(held: _OpenShard, sample: int, names: list[str]) -> ShardError:
    key = bytes(held.key[sample]).decode(errors="backslashreplace")
    at = min(int(held.fields[name][0][sample]) for name in names) * BLOCK - BLOCK
    text = (
        f"{held.path}: the headers of sample {key!r} from byte {at} on are not those that were indexed: damaged, or rewritten "
        f"at the same size and time. Fetch or pack the shard again and delete {sidecar_path(held.path)}"
    )
    return ShardError(text, held.path, at)
