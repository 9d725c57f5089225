"""What became of shards that were to be indexed, for people and for exit codes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from clipkit.data.index import sidecar_path
from clipkit.data.tar import ShardError

_IN_FULL = 3  # errors that are shown whole; the other shards are named


@dataclass(frozen=True)
class Indexed:
    """What became of one shard, as it travels between processes.

    Args:
        path: The shard.
        count: Its samples.
        size: Its bytes.
        fingerprint: Of its index.
        fields: How many samples have each field.
        fresh: Whether a fitting sidecar was there already.
        sidecar: Where its sidecar is; empty if it could not be kept.
        refusal: Why it has no index; empty if it has one.
        offset: Byte at which it was refused.
    """

    path: str
    count: int = 0
    size: int = 0
    fingerprint: str = ""
    fields: dict[str, int] = field(default_factory=dict)
    fresh: bool = False
    sidecar: str = ""
    refusal: str = ""
    offset: int | None = None


@dataclass
class IndexReport:
    """What became of all shards.

    Args:
        indexed: Shards whose headers were read.
        fresh: Shards whose sidecars were there and fit.
        samples: Of both.
        fields: How many samples have each field.
        lists: The ``index.json`` of each folder, in the folders' order.
        unkept: Shards whose sidecars could be kept nowhere.
        cached: Shards whose sidecars lie in the cache.
        unlisted: Folders whose list could be written nowhere.
        refused: Shards without an index.
        cache: The cache.
    """

    cache: Path | None
    indexed: int = 0
    fresh: int = 0
    samples: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    lists: list[Path] = field(default_factory=list)
    unkept: int = 0
    cached: int = 0
    unlisted: list[str] = field(default_factory=list)
    refused: list[Indexed] = field(default_factory=list)

    def count(self, shard: Indexed) -> None:
        """Enter a shard."""
        if shard.refusal:
            self.refused.append(shard)
            return
        self.fresh += shard.fresh
        self.indexed += not shard.fresh
        self.samples += shard.count
        self.fields.update(shard.fields)
        self.unkept += not shard.sidecar
        self.cached += bool(shard.sidecar) and shard.sidecar != str(sidecar_path(shard.path))

    def __str__(self) -> str:
        shards = self.indexed + self.fresh
        lines = [
            f"indexed {self.indexed:,} shards, {self.fresh:,} were indexed already: {self.samples:,} samples in {shards:,} shards",
            "fields: " + (", ".join(f"{name} {count:,}" for name, count in sorted(self.fields.items())) or "none"),
        ]
        if self.cached:
            lines.append(f"{self.cached:,} sidecars lie in {self.cache}/index: their folders cannot be written")
        if self.lists:
            more = f" and {len(self.lists) - _IN_FULL:,} more" * (len(self.lists) > _IN_FULL)
            lines.append("listed in " + ", ".join(str(place) for place in self.lists[:_IN_FULL]) + more)
        return "\n".join(lines)

    def raise_unkept(self) -> None:
        """Say that indexes were made for nothing.

        Raises:
            ValueError: If a sidecar or a list could be kept nowhere.
        """
        if self.unkept or self.unlisted:
            where = f" or {self.cache}" if self.cache else ""
            raise ValueError(
                f"{self.unkept:,} indexes could not be kept and {len(self.unlisted):,} index.json not be written: neither beside "
                f"the shards{where}; name a folder that can be written in CLIPKIT_CACHE (in a run: data.cache)"
            )

    def raise_refusals(self) -> None:
        """Say which shards have no index.

        Raises:
            ShardError: If there are any.
        """
        if not self.refused:
            return
        first = self.refused[0]
        text = "\n".join(shard.refusal for shard in self.refused[:_IN_FULL])
        if len(self.refused) > 1:
            text = f"{len(self.refused):,} shards cannot be indexed:\n{text}"
        if others := [shard.path for shard in self.refused[_IN_FULL:]]:
            text += f"\nand: {', '.join(others)}"
        raise ShardError(text, first.path, first.offset)
