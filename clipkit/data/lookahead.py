"""Remote shards brought to a node before its workers ask for them: the plan says which those are.

One for each node, in the process of its first rank. It walks the batches ahead of the training position, keeps in use what
lies between, and fetches what is missing, as far ahead as its share of the cache's bytes goes. Nothing depends on it: a
worker that comes to a shard first fetches it itself.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np

from clipkit.data.catalogue import Catalogue
from clipkit.data.node_cache import NodeCache
from clipkit.data.plan import WINDOW, Ints, Plan
from clipkit.data.urls import is_remote, shown

_log = logging.getLogger(__name__)
_SHARE = 0.75  # of the cache's bytes, at most, for what lies ahead; the rest is for what was just left behind
_STRIDE = 1 << 14  # positions looked at in one go, at least
_FARTHEST = 1 << 20  # positions: two windows of 64 lanes
_POLL = 0.2  # seconds between two looks at the position, when all that may be ahead is there
Shard = tuple[int, int]


class NodeOrder:
    """Which shards the ranks of one node need for which batch.

    Args:
        plan: The order.
        catalogues: Per source its shards.
        batch_size: Samples of a batch over all ranks.
        ranks: The ranks of this node.
        world: How many ranks there are.
    """

    def __init__(
        self, plan: Plan, catalogues: Sequence[Catalogue], *, batch_size: int, ranks: Sequence[int], world: int
    ) -> None:
        self.plan, self.catalogues = plan, list(catalogues)
        self.batch_size, self.ranks, self.world = batch_size, list(ranks), world

    def url(self, shard: Shard) -> str:
        """The address of a shard."""
        return self.catalogues[shard[0]].path(shard[1])

    def shards(self, start: int, batches: int = 1) -> list[Shard]:
        """Remote shards that samples of some batches from position ``start`` lie in, in the order in which they are first needed."""
        positions = np.arange(start, start + batches * self.batch_size)
        rows = self.plan.rows(positions[np.isin((positions - start) % self.batch_size % self.world, self.ranks)])
        pairs = np.stack([rows.source, rows.shard])
        _, first = np.unique(pairs, axis=1, return_index=True)
        found: Ints = pairs[:, np.sort(first)]
        return [shard for source, number in found.T.tolist() if is_remote(self.url(shard := (source, number)))]

    def needed(self, batches: int, cache: NodeCache) -> int:
        """Bytes of the shards that so many batches need at once, at the worst of the places looked at: the start and where windows meet."""
        span = batches * self.batch_size
        starts = {0}
        for share, source in zip(self.plan.shares, self.plan.sources, strict=True):
            meeting = min(WINDOW, source.lane_length) * source.lanes * 1024 // share
            starts.add(max(0, meeting - span // 2) // self.batch_size * self.batch_size)
        sizes = [self._mean_size(source, cache) for source in range(len(self.catalogues))]
        return max(int(sum(sizes[source] for source, _ in self.shards(start, batches))) for start in starts)

    def _mean_size(self, source: int, cache: NodeCache) -> float:
        """Bytes of a remote shard of a source: by its fingerprints, which begin with them, else by those that were fetched."""
        catalogue = self.catalogues[source]
        known = [int(told) for mark in catalogue.fingerprints if (told := bytes(mark).partition(b"-")[0]).isdigit()]
        if not known:
            paths = (catalogue.path(shard) for shard in range(len(catalogue.counts)))
            known = [size for path in paths if is_remote(path) and (size := cache.size(path))]
        return float(np.mean(known)) if known else 0.0


class LookAhead:
    """The threads that fetch ahead.

    Args:
        order: What is needed when.
        cache: Where it is brought.
        position: Tells the position that training is at.
        end: Position of the run's end.
        threads: How many shards are fetched at once.
    """

    def __init__(
        self, order: NodeOrder, cache: NodeCache, *, position: Callable[[], int], end: int, threads: int = 4
    ) -> None:
        self.order, self.cache, self.position, self.end = order, cache, position, end
        self.failures: dict[str, str] = {}
        """What could not be fetched ahead, and why."""
        self._next = position()  # the first position that was not looked at
        self._drawn: tuple[int, list[Shard]] | None = None  # looked at, but too much for now
        self._ahead: deque[tuple[int, list[Shard]]] = deque()  # stretches between: their ends and their shards
        self._near: Counter[Shard] = Counter()  # how many of those stretches need a shard
        self._wanted: deque[Shard] = deque()
        self._sizes: dict[Shard, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"look-ahead-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 1.0) -> None:
        """End the threads; one that waits for a server is left to end by itself."""
        self._stop.set()
        for thread in self._threads:
            thread.join(seconds)
        if self.failures:
            url, why = next(reversed(self.failures.items()))
            _log.warning("%d shards could not be fetched ahead, such as %s: %s", len(self.failures), shown(url), why)

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                shard = self._take()
            if shard is None:
                self._stop.wait(_POLL)
                continue
            url = self.order.url(shard)
            try:
                self.cache.fetch(url)
                self.failures.pop(url, None)
            except Exception as error:  # the worker that needs the shard will say it louder
                self.failures[url] = shown(str(error))

    def _take(self) -> Shard | None:
        """The next shard to fetch; None if all that may be ahead is there or on its way."""
        position = self.position()
        moved = False
        while self._ahead and self._ahead[0][0] <= position:
            self._near -= Counter(self._ahead.popleft()[1])
            moved = True
        if moved:
            for shard in self._near:
                self.cache.touch(self.order.url(shard))
        while not self._wanted and self._extend(position):
            pass
        return self._wanted.popleft() if self._wanted else None

    def _extend(self, position: int) -> bool:
        """Look at one more stretch of batches; False if that is too far or too much."""
        if self._drawn is None:
            start = max(self._next, position)
            if start >= min(self.end, position + _FARTHEST):
                return False
            batches = max(1, _STRIDE // self.order.batch_size)
            self._next = start + batches * self.order.batch_size
            self._drawn = self._next, self.order.shards(start, batches)
        end, shards = self._drawn
        if self._ahead and self._bytes({*self._near, *shards}) > _SHARE * self.cache.budget:
            return False
        # those that are here are in use from now on, before any is fetched that would take their place
        self._wanted += [
            shard for shard in shards if not self.cache.touch(self.order.url(shard)) and shard not in self._near
        ]
        self._ahead.append((end, shards))
        self._near.update(shards)
        self._drawn = None
        return True

    def _bytes(self, shards: set[Shard]) -> int:
        """Of these shards; one that was never here counts as the largest that was."""
        for shard in shards - self._sizes.keys():
            if size := self.cache.size(self.order.url(shard)):
                self._sizes[shard] = size
        largest = max(self._sizes.values(), default=0)
        return sum(self._sizes.get(shard, largest) for shard in shards)
