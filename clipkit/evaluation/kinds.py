"""Kinds of tasks: the one table from a task's specification to the evaluator that asks its question.

To add a kind:

1. its ``Spec`` in ``clipkit/config/evaluate.py``: ``kind: Literal["NAME"]``, ``data``, further keys, and ``figures``, the
   names of all figures that it may give, the one that decides first; it joins the union ``TaskSpec``;
2. its evaluator in ``clipkit/evaluation/``, whose constructor takes ``data`` and the specification's further keys by their names;
3. a line in ``KINDS``.

Configurations, ``clipkit.evaluate`` and the command line (``--task NAME --option key=value``) all build evaluators here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipkit.config.evaluate import (
    CompositionalSpec,
    LinearProbeSpec,
    MultiLabelSpec,
    NearestNeighboursSpec,
    RetrievalSpec,
    ZeroShotSpec,
)
from clipkit.config.single import validated
from clipkit.evaluation.compositional import Compositional
from clipkit.evaluation.datasets import task_of
from clipkit.evaluation.evaluator import Evaluator
from clipkit.evaluation.knn import NearestNeighbours
from clipkit.evaluation.linear_probe import LinearProbe
from clipkit.evaluation.multi_label import MultiLabel
from clipkit.evaluation.places import local_place
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot


class Kind(NamedTuple):
    """What a kind is written as, and what answers it."""

    spec: type[Any]
    evaluator: Callable[..., Evaluator]


KINDS: dict[str, Kind] = {
    "zero_shot": Kind(ZeroShotSpec, ZeroShot),
    "retrieval": Kind(RetrievalSpec, Retrieval),
    "multi_label": Kind(MultiLabelSpec, MultiLabel),
    "compositional": Kind(CompositionalSpec, Compositional),
    "linear_probe": Kind(LinearProbeSpec, LinearProbe),
    "knn": Kind(NearestNeighboursSpec, NearestNeighbours),
}


def build_evaluator(spec: Any, cache: Path) -> Evaluator:
    """The evaluator of a task, its data opened.

    Args:
        spec: One of the specifications of ``KINDS``.
        cache: Where embedded and remote data are kept.

    Raises:
        ValueError: If the data cannot be used as they are, with place and cure.
    """
    options = {name: getattr(spec, name) for name in type(spec).model_fields if name not in ("kind", "data")}
    return KINDS[spec.kind].evaluator(local_place(spec.data, cache), **options)


def task_spec(
    data: str | Path, cache: Path, *, kind: str | None = None, options: Mapping[str, Any] | None = None
) -> Any:
    """The specification of a task that is named outside a configuration.

    Args:
        data: What the user calls DATA.
        cache: Where embedded and remote data are kept.
        kind: One of ``KINDS``; None asks the data.
        options: The specification's further keys.

    Raises:
        ValueError: If there is no such kind, key or data, or a value does not fit its key.
    """
    chosen = kind or task_of(local_place(data, cache))
    if chosen not in KINDS:
        raise ValueError(f"there is no task {chosen!r}; tasks: {', '.join(KINDS)}")
    return validated(KINDS[chosen].spec, {**(options or {}), "kind": chosen, "data": str(data)}, f"task {chosen}")
