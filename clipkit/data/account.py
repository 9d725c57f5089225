"""Where every sample went: present + repeated = filtered + remainder + planned, planned = trained + bad, per source and epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipkit.data.catalogue import Catalogue
from clipkit.data.dataset import BadRecord
from clipkit.data.plan import Plan

Counts = dict[str, dict[str, dict[str, int]]]
"""Source name, epoch (as text: JSON's keys are), cause: how many."""


def add(counts: Counts, source: str, epoch: str, cause: str, number: int = 1) -> None:
    """Count bad samples."""
    causes = counts.setdefault(source, {}).setdefault(epoch, {})
    causes[cause] = causes.get(cause, 0) + number


def merge(parts: Iterable[Counts]) -> Counts:
    """The sum of several counts."""
    total: Counts = {}
    for part in parts:
        for source, epochs in part.items():
            for epoch, causes in epochs.items():
                for cause, number in causes.items():
                    add(total, source, epoch, cause, number)
    return total


@dataclass(frozen=True)
class EpochAccount:
    """One epoch of one source, as far as it was trained on.

    Args:
        epoch: Counted from 0; -1 stands for all of a stream, whose epochs cannot be told apart.
        present: Samples that the shards hold.
        filtered: Left out by the source's selection.
        remainder: Left out because the lanes are of equal length; other ones each epoch.
        planned: To be trained in this epoch; those of an unfinished epoch that are still to come included.
        seen: Of these, the ones that were consumed: ``trained`` plus those of ``bad``.
        trained: Consumed as themselves.
        bad: By cause, those in whose place a substitute trained.
        noted: By cause, how often one was trained on with something approximated (``animated``: its first frame).
        repeated: Copies beyond each sample's first that an epoch has.
        filtered_by: ``filtered`` by cause: missing (a value that a rule needs), filter, keys, skip_keys, duplicate, weight.
    """

    epoch: int
    present: int
    filtered: int
    remainder: int
    planned: int
    seen: int
    trained: int
    bad: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    filtered_by: dict[str, int] = field(default_factory=dict)


def report(
    plan: Plan,
    names: Sequence[str],
    catalogues: Sequence[Catalogue],
    position: int,
    bad: Counts,
    noted: Counts | None = None,
) -> dict[str, list[EpochAccount]]:
    """The account of everything before a position.

    Args:
        plan: The run's plan.
        names: Of its sources.
        catalogues: What each holds.
        position: Samples consumed over all ranks.
        bad: Of all ranks.
        noted: Of all ranks.
    """
    accounts: dict[str, list[EpochAccount]] = {}
    for name, held, source, consumed in zip(names, catalogues, plan.sources, plan.consumed(position), strict=True):
        lines = accounts.setdefault(name, [])
        left_out = {} if held.chosen is None else held.chosen.filtered
        for epoch in range(-(-consumed // source.planned)):
            causes = bad.get(name, {}).get(str(epoch), {})
            seen = min(consumed - epoch * source.planned, source.planned)
            lines.append(
                EpochAccount(
                    epoch=epoch,
                    present=int(held.counts.sum()),
                    filtered=sum(left_out.values()),
                    remainder=source.present - source.planned,
                    planned=source.planned,
                    seen=seen,
                    trained=seen - sum(causes.values()),
                    bad=dict(causes),
                    noted=dict((noted or {}).get(name, {}).get(str(epoch), {})),
                    repeated=0 if held.chosen is None else held.chosen.repeated,
                    filtered_by=dict(left_out),
                )
            )
    return accounts


def count_records(counts: Counts, records: Iterable[BadRecord]) -> None:
    """Add a batch's bad samples."""
    for record in records:
        add(counts, record.source, str(record.epoch), record.cause)


def as_json(accounts: dict[str, list[EpochAccount]]) -> dict[str, list[dict[str, Any]]]:
    """The accounts as plain objects."""
    return {name: [vars(line) for line in lines] for name, lines in accounts.items()}
