"""Which samples of a source are planned, and how often: filter, key lists, duplicates, repeats.

The selection of a shard is a pure function of its index, its columns, and what the whole source tells: which images come
twice, how many samples each class has. It is made once, before training, from sidecars alone, and kept in the cache by
what it depends on; no byte of a sample that is left out is read after that.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.expression import names, parse_expression
from clipkit.data.chosen import Chosen, Samples, keep_chosen, load_chosen
from clipkit.data.column_store import Columns, gather, known_names, read_columns
from clipkit.data.columns import UID_HIGH, UID_LOW, Wanted, class_column, number_columns, number_values
from clipkit.data.filters import Mask, evaluate
from clipkit.data.index import Ints, load_index
from clipkit.data.key_list import KeyList, Words, key_words
from clipkit.data.node_cache import locked
from clipkit.data.repeats import MOST_COPIES, class_factors, copies
from clipkit.data.source import Source
from clipkit.data.tar import ShardError
from clipkit.data.urls import is_remote, shown

VERSION = 1  # one more whenever the same rule would choose other samples
_LISTS = ("keys", "skip_keys")
_LONGEST = 7 * 86_400.0  # seconds that another may take


def rule(source: Source) -> dict[str, Any] | None:
    """What a selection depends on but for the shards, of JSON types; None if the source plans each sample once."""
    lists = {name: path for name in _LISTS if (path := getattr(source, name)) is not None}
    if not (source.filter or lists or source.duplicates == "drop" or source.repeat):
        return None
    return {
        "filter": source.filter,
        **{name: KeyList(lists[name]).digest if name in lists else None for name in _LISTS},
        "duplicates": source.duplicates,
        "repeat": None if source.repeat is None else str(source.repeat),
    }


def choose(source: Source, counts: Ints, fingerprints: NDArray[np.bytes_], cache: Path | None) -> Chosen | None:
    """The planned samples of a source; as they were kept, or made now.

    Args:
        source: The source.
        counts: Samples of each shard (S,).
        fingerprints: Of each shard (S,).
        cache: Folder for what is kept; None keeps nothing.

    Returns:
        None if every sample is planned once.

    Raises:
        ValueError: If nothing is left, a column is unknown, a list cannot be read, or a shard is not on this machine.
    """
    what = rule(source)
    if what is None:
        return None
    refuse_absent(source)
    if source.duplicates == "drop" and "image" not in source.fields:
        raise ValueError(f"source {source.name!r}: duplicates: drop compares images, and its fields name none")
    # a shard whose content changed at the same size may have other columns: its time of change enters, not the fingerprint
    times = b"".join(os.stat(path).st_mtime_ns.to_bytes(8, "little") for path in source.shards)
    fields = {name: list(places) for name, places in source.fields.items()}
    text = json.dumps([VERSION, what, fields], sort_keys=True).encode()
    mark = hashlib.blake2b(text + times + b"\n".join(fingerprints.tolist()), digest_size=16).hexdigest()
    place = None if cache is None else cache / "selection" / mark
    with _alone(place):  # of a node's ranks one chooses, which may read every image; the others find it
        chosen = None if place is None else load_chosen(place)
        if chosen is None:
            selector = _Selector(source, counts, fingerprints, cache)
            chosen = keep_chosen(place, selector.parts, dict(selector.filtered), selector.kept)
    if not len(chosen.samples):
        raise ValueError(_nothing_left(source, int(counts.sum()), chosen.filtered))
    return chosen


@contextlib.contextmanager
def _alone(place: Path | None) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        if place is not None:
            with contextlib.suppress(OSError):  # a cache that cannot be written: each process chooses for itself
                place.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(place.with_suffix(".lock"), _LONGEST))
        yield


def refuse_absent(source: Source) -> None:
    """A selection needs the index and the columns of every shard.

    Raises:
        ValueError: If a shard is not a file of this machine.
    """
    absent = next((path for path in source.shards if is_remote(path)), None)
    if absent is not None:
        raise ValueError(
            f"source {source.name!r}: its filter, keys, duplicates or repeat need the index of every shard before training, "
            f"and {shown(absent)} is not on this machine; copy the shards here"
        )


def _nothing_left(source: Source, present: int, filtered: dict[str, int]) -> str:
    causes = ", ".join(f"{count:,} {cause}" for cause, count in filtered.items())
    given = {name: getattr(source, name) for name in ("filter", *_LISTS) if getattr(source, name) is not None}
    rules = "; ".join(f"{name}: {value}" for name, value in given.items()) or "its weights"
    hint = " (missing: samples without a value that the rule needs)" if "missing" in filtered else ""
    return (
        f"source {source.name!r}: of {present:,} samples none is left, by cause {causes}{hint}. Loosen what leaves them out "
        f"({rules}), or leave out the source"
    )


class _Selector:
    """Chooses in passes over the sidecars; between them one bit a sample is held."""

    def __init__(self, source: Source, counts: Ints, fingerprints: NDArray[np.bytes_], cache: Path | None) -> None:
        self.source, self.counts, self.fingerprints, self.cache = source, counts, fingerprints, cache
        self.expression = None if source.filter is None else parse_expression(source.filter)
        self.lists = {name: KeyList(path) for name in _LISTS if (path := getattr(source, name)) is not None}
        repeat = source.repeat
        self.weight = None if repeat is None else repeat.column
        self.group = None if repeat is None or repeat.by is None else class_column(repeat.by, source)
        self.image = Wanted("image_hash", "", source.places().get("image", ()))
        self.numbers = [*(names(self.expression) if self.expression else []), *([self.weight] if self.weight else [])]
        self.wanted = self._wanted()
        self._check_names()
        gather(source.shards, self.wanted, cache)
        self.filtered: Counter[str] = Counter()
        self.masks = [self._base(shard) for shard in range(len(source.shards))]
        if source.duplicates == "drop":
            self._drop_duplicates()
        self.kept = sum(int(np.unpackbits(mask).sum()) for mask in self.masks)
        self.classes, self.factors = self._class_factors() if self.group else (np.empty(0, np.int64), np.empty(0))

    def _wanted(self) -> list[Wanted]:
        found = [wanted for name in self.numbers for wanted in number_columns(name, self.source)]
        found += [self.group] if self.group else []
        found += [self.image] if self.source.duplicates == "drop" else []
        if any(held.of_uids for held in self.lists.values()):
            found += [Wanted(UID_HIGH), Wanted(UID_LOW)]
        return found

    def _columns(self, shard: int) -> Columns:
        held = read_columns(self.source.shards[shard], self.wanted, self.cache)
        for column in held.values():
            self._check_count(shard, len(column))
        return held

    def _key_words(self, shard: int) -> tuple[Words, Words]:
        keys = load_index(self.source.shards[shard], self.cache).key
        self._check_count(shard, len(keys))
        return key_words(keys.tolist())

    def _check_count(self, shard: int, found: int) -> None:
        if found != self.counts[shard]:
            path = self.source.shards[shard]
            text = f"{path}: {found:,} samples, {self.counts[shard]:,} were counted; delete index.json beside it if the shard "
            raise ShardError(text + "was rewritten on purpose, and start again", path)

    def _check_names(self) -> None:
        """A slip in a name shows in the first shard, before all the others are read for it."""
        held, path = self._columns(0) if self.wanted else {}, self.source.shards[0]
        for wanted in self.wanted:
            if wanted.kind in ("number", "class", UID_LOW) and wanted.missing(held[wanted.stored]).all():
                known = known_names(path, self.cache, numbers=wanted.kind == "number")
                name = wanted.key or "uid"
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"source {self.source.name!r}: none of the {len(held[wanted.stored]):,} samples of {path} has a column {name!r}"
                    + (f"; did you mean {near[0]!r}?" if near else ".")
                    + f" Known are {', '.join(known)}; shards without it belong in a source of their own"
                )

    def _base(self, shard: int) -> NDArray[np.uint8]:
        """What can be told by the shard alone: one bit a sample."""
        held = self._columns(shard) if self.wanted else {}
        left = np.ones(int(self.counts[shard]), bool)

        def leave_out(cause: str, which: Mask) -> None:
            nonlocal left
            self.filtered[cause] += int((left & which).sum())
            left &= ~which

        if self.expression is not None:
            verdict = evaluate(self.expression, lambda name: number_values(name, self.source, held))
            leave_out("missing", ~(verdict.holds | verdict.fails))
            leave_out("filter", verdict.fails)
        for name, listed in self.lists.items():
            if listed.of_uids:
                high, low = (held[Wanted(kind).stored].view(np.uint64) for kind in (UID_HIGH, UID_LOW))
                leave_out("missing", (high == 0) & (low == 0))
            else:
                high, low = self._key_words(shard)
            leave_out(name, listed.holds(high, low) == (name == "skip_keys"))
        if self.weight is not None:
            leave_out("missing", np.isnan(number_values(self.weight, self.source, held)))
        if self.group is not None:
            leave_out("missing", self.group.missing(held[self.group.stored]))
        self.filtered = +self.filtered  # no causes of 0
        return np.packbits(left)

    def _samples(self, shard: int) -> Ints:
        return np.flatnonzero(np.unpackbits(self.masks[shard]))

    def _drop_duplicates(self) -> None:
        """Of equal images the first stays. About 32 bytes a sample are held meanwhile."""
        every = np.concatenate(
            [self._columns(shard)[self.image.stored][self._samples(shard)] for shard in range(len(self.masks))]
        )
        stays = every == 0  # without an image: another cause
        stays[np.unique(every, return_index=True)[1]] = True
        if stays.all():
            return
        self.filtered["duplicate"] = int((~stays).sum())
        start = 0
        for shard, mask in enumerate(self.masks):
            rows = self._samples(shard)
            left = np.zeros(8 * len(mask), bool)
            left[rows[stays[start : start + len(rows)]]] = True
            start += len(rows)
            self.masks[shard] = np.packbits(left)

    def _class_factors(self) -> tuple[Ints, NDArray[np.float64]]:
        assert self.group is not None
        assert self.source.repeat is not None
        total: Counter[int] = Counter()
        for shard in range(len(self.masks)):
            held = self._columns(shard)[self.group.stored]
            found, counts = np.unique(held[self._samples(shard)], return_counts=True)
            total.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        classes = np.array(sorted(total), np.int64)
        counts = np.array([total[group] for group in classes.tolist()], np.int64)
        return classes, class_factors(counts, self.source.repeat.threshold, self.source.repeat.power)

    def parts(self) -> Iterator[tuple[Samples, int]]:
        """Shard after shard its planned samples, copies included, and how many they are without."""
        for shard in range(len(self.masks)):
            rows = self._samples(shard).astype(np.uint32)
            if not (self.group or self.weight):
                yield rows, len(rows)
                continue
            held = self._columns(shard)
            factors = np.ones(len(rows))
            if self.group is not None:
                factors *= self.factors[np.searchsorted(self.classes, held[self.group.stored][rows])]
            if self.weight is not None:
                factors *= number_values(self.weight, self.source, held)[rows]
            self._check_factors(factors, rows, shard)
            # drawn by the shard's content, so that small shards do not all round the same way
            drawn = hashlib.blake2b(self.fingerprints[shard], digest_size=2).digest()
            number = copies(factors, (int.from_bytes(drawn, "little") + 0.5) / 2**16)
            yield np.repeat(rows, number), int((number > 0).sum())

    def _check_factors(self, factors: NDArray[np.float64], rows: Samples, shard: int) -> None:
        wrong = np.flatnonzero(~((factors >= 0) & (factors <= MOST_COPIES)))
        if len(wrong):
            first, path = int(wrong[0]), self.source.shards[shard]
            key = load_index(path, self.cache).name(int(rows[first]))
            raise ValueError(
                f"source {self.source.name!r}: sample {key!r} of {path} would come "
                f"{factors[first]:g} times an epoch; 0 to {MOST_COPIES:,} is possible. Mend its weight, or lower repeat.threshold or "
                "repeat.power"
            )
