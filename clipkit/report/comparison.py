"""Two runs side by side: what differs in their configurations, and whether their figures differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clipkit.config import RunConfig
from clipkit.config.write import flatten
from clipkit.report.significance import Paired, holm, paired
from clipkit.report.study import Study

_PLACES = ("run", "data.cache")  # where things lie decides nothing


class Difference(NamedTuple):
    """A figure of both runs."""

    task: str
    figure: str
    first: float
    second: float
    test: Paired | None
    corrected: float | None
    """p after Holm's correction over all tests of the page."""
    why_not: str
    """Why there is no test."""


def config_differences(first: RunConfig, second: RunConfig) -> list[tuple[str, str, str]]:
    """Key and both values, as text, of every key that differs; where the runs lie is left out."""
    before, after = flatten(first), flatten(second)
    keys = [*before, *(key for key in after if key not in before)]
    return [
        (key, str(before.get(key, "absent")), str(after.get(key, "absent")))
        for key in keys
        if before.get(key, "absent") != after.get(key, "absent") and key not in _PLACES
    ]


def compare(first: Sequence[Study], second: Sequence[Study]) -> list[Difference]:
    """Every figure that both runs have, with a paired test where both answered the same questions."""
    others = {study.name: study for study in second}
    found = []
    for study in first:
        other = others.get(study.name)
        if other is None or other.task != study.task:
            continue
        values = {figure.name: figure.value for figure in other.figures}
        for figure in study.figures:
            if figure.name in values:
                test, why = _test(study, other, figure.name)
                found.append(Difference(study.name, figure.name, figure.value, values[figure.name], test, None, why))
    corrected = iter(holm([one.test.p for one in found if one.test is not None]))
    return [one if one.test is None else one._replace(corrected=next(corrected)) for one in found]


def _test(first: Study, second: Study, figure: str) -> tuple[Paired | None, str]:
    if first.key != second.key:
        return None, "not the same samples"
    if figure not in first.findings.outcomes or figure not in second.findings.outcomes:
        return None, "not a mean over samples"
    mine = first.findings
    clusters, strata = mine.clusters.get(figure), mine.strata.get(figure)
    return paired(mine.outcomes[figure], second.findings.outcomes[figure], clusters=clusters, strata=strata), ""
