"""Checks at the start, so that a wrong path or field name costs a second and not a night."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from clipkit.data.dataset import Order, ShardDataset
from clipkit.data.images import BadSample
from clipkit.data.lookahead import NodeOrder
from clipkit.data.node_cache import NodeCache
from clipkit.data.plan import BLOCK, Ints, Plan
from clipkit.data.reader import ShardReader
from clipkit.data.source import Source
from clipkit.data.urls import shown

PROBED = 100


def check_fields(sources: Sequence[Source]) -> None:
    """All sources of a loader give the same fields, under names that tell them apart.

    Raises:
        ValueError: If not.
    """
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sources {names}: at least one is needed, and each needs a name of its own")
    for source in sources[1:]:
        if set(source.fields) != set(sources[0].fields):
            first, other = sources[0], source
            raise ValueError(
                f"source {first.name!r} gives {sorted(first.fields)} and {other.name!r} {sorted(other.fields)}; "
                "the sources of one run give the same fields"
            )


def check_sizes(plan: Plan, sources: Sequence[Source], batch_size: int, world: int) -> None:
    """A batch divides over the ranks and holds no sample twice.

    Raises:
        ValueError: If not, with the numbers.
    """
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size={batch_size} is no multiple of the {world} ranks; take {-(-batch_size // world) * world}"
        )
    for source, share, own in zip(sources, plan.shares, plan.sources, strict=True):
        needed = -(-batch_size * share // BLOCK)
        if own.planned < needed:
            raise ValueError(
                f"source {source.name!r} plans {own.planned:,} samples an epoch, and its share of a batch of {batch_size:,} "
                f"is {needed:,}: a batch would hold samples twice. Take {_largest(own.planned * BLOCK // share, world)}"
                + (f", or make its weight smaller ({source.weight:g})" if len(sources) > 1 else "")
            )


def _largest(samples: int, world: int) -> str:
    largest = samples // world * world
    return f"data.batch_size={largest} or less" if largest else "fewer ranks, or more samples"


def check_samples(dataset: ShardDataset, sources: Sequence[Source], order: Order, first: Sequence[Ints]) -> None:
    """Each source has a usable sample among the first that are planned.

    Args:
        dataset: Reads them.
        sources: The sources.
        order: Positions to samples.
        first: Per source the positions of its first samples.

    Raises:
        ValueError: If a source has none, with what its shards hold.
    """
    for source, positions in zip(sources, first, strict=True):
        causes: Counter[str] = Counter()
        rows = order.rows(positions[:PROBED])
        for number in range(len(rows.position)):
            row = rows.take(slice(number, number + 1))
            try:
                dataset.read(int(row.source[0]), int(row.shard[0]), int(row.sample[0]), 0.0)
                break
            except BadSample as error:
                causes[str(error)] += 1
        else:
            path = dataset.catalogues[int(rows.source[0])].path(int(rows.shard[0]))
            raise ValueError(_nothing_usable(source, path, causes, dataset.reader))


def check_budget(order: NodeOrder, cache: NodeCache, batches: int) -> None:
    """Whether the cache of remote shards holds what a node needs at once.

    Args:
        order: What the node needs when.
        cache: The cache.
        batches: How many of them are in work at once.

    Raises:
        ValueError: If it does not, with the bytes that are needed.
    """
    needed = order.needed(batches, cache)
    if needed > cache.budget:
        raise ValueError(
            f"data.cache_size={cache.budget:,} bytes hold fewer remote shards than are read at once: the shards of {batches} batches "
            f"are about {needed:,} bytes ({needed / 1e9:.1f} GB) on this node, and each would be fetched again and again; raise it, "
            "or give data.cache a larger disk"
        )


def _nothing_usable(source: Source, path: str, causes: Counter[str], reader: ShardReader) -> str:
    opened = reader.open(path)
    os.close(opened.fd)
    members = ", ".join(f".{name}" for name in opened.index.fields)
    why = "; ".join(f"{count} x {cause}" for cause, count in causes.most_common(3))
    fields = ", ".join(f"{name}: [{', '.join(places)}]" for name, places in source.fields.items())
    return (
        f"source {source.name!r}: none of the first {sum(causes.values())} planned samples can be used ({why}). "
        f"Its fields are read from {{{fields}}}; the members in {shown(path)} are {members}. "
        "Name the right ones in `fields` (json.KEY reads a key of a JSON member)"
    )
