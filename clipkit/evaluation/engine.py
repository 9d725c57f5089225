"""Several sets, one encoder: each opened before any is encoded, each written as soon as it is done, none done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clipkit import distributed
from clipkit.config.names import DISTRIBUTION
from clipkit.encoder import Encoder
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Evaluator, Figures, Findings
from clipkit.evaluation.fingerprints import encoder_hashes, evaluator_hashes
from clipkit.evaluation.intervals import LEVEL, RESAMPLES, bootstrap_interval
from clipkit.evaluation.out import refuse_foreign
from clipkit.evaluation.preprocessing import preprocessing_doubt
from clipkit.evaluation.result import Result, percent, refuse_equal_names

Say = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """One set and what is asked of it.

    Args:
        name: What results call the set.
        evaluator: Asks it.
        expected: How many samples the set is known to have; None where that is not known.
        notes: What else its result should say, JSON types only.
    """

    name: str
    evaluator: Evaluator
    expected: int | None = None
    notes: Mapping[str, Any] | None = None

    @property
    def samples(self) -> int:
        """How many images it holds, 0 where the evaluator does not say."""
        data: Any = getattr(self.evaluator, "data", None)
        return len(data) if hasattr(data, "__len__") else 0


@dataclass(frozen=True)
class Setting:
    """How sets are encoded and figures are taken.

    Args:
        batch_size: Images of one forward on one rank.
        workers: Processes a rank that read and decode images.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        seed: Of the bootstrap.
        feature_cache: A folder where the features that probes learn from are kept; None keeps none.
    """

    batch_size: int = 64
    workers: int = 0
    precision: str = "fp32"
    seed: int = 0
    feature_cache: Path | None = None


def evaluate_sets(
    encoder: Encoder,
    questions: Sequence[Question],
    setting: Setting,
    *,
    out: Path | None = None,
    say: Say = lambda line: None,
    on_images: Callable[[int], None] = lambda count: None,
) -> list[Result]:
    """Score an encoder on sets, on all ranks together; rank 0 writes.

    Args:
        encoder: The encoder, the same on every rank.
        questions: The sets.
        setting: How.
        out: A folder of results: one that stands there with equal hashes is taken over, each new one is written when it is done.
        say: Told what the user should hear.
        on_images: Told how many images this rank has encoded.

    Returns:
        A result a set, in order, the same on every rank.

    Raises:
        ValueError: If a set has another number of samples than it is known to have, an image cannot be read, two results have one name, a
            file that is no result would be replaced, or the ranks hold different weights.
    """
    for question in questions:
        require_count(question.name, question.samples, question.expected)
    encodings = Encodings(
        encoder,
        batch_size=setting.batch_size,
        workers=setting.workers,
        precision=setting.precision,
        on_images=on_images,
        feature_cache=setting.feature_cache,
    )
    if doubt := preprocessing_doubt(encoder):
        say(doubt)
    hashes = encoder_hashes(encoder)
    if any(theirs != hashes for theirs in distributed.gather_json(hashes)):
        raise ValueError("the ranks hold different weights; give every rank the same model")
    blanks = [_blank(encoder, question, setting, hashes) for question in questions]
    if out is not None:
        refuse_equal_names(blanks, out)
        distributed.on_rank_0(partial(_refuse_foreign, blanks, out))
    return _answers(questions, blanks, encodings, setting, out=out, say=say, on_images=on_images)


def _answers(
    questions: Sequence[Question],
    blanks: Sequence[Result],
    encodings: Encodings,
    setting: Setting,
    *,
    out: Path | None,
    say: Say,
    on_images: Callable[[int], None],
) -> list[Result]:
    results = []
    for number, (question, blank) in enumerate(zip(questions, blanks, strict=True), start=1):
        place = f"{number}/{len(questions)} {question.name}"
        held = None if out is None else _standing(out / blank.filename, blank)
        if held is not None:
            on_images(question.samples // distributed.world_size())
            say(f"{place}: the result in {out} has equal hashes and is taken over")
        results.append(held or _answer(question, blank, encodings, setting, out=out, say=say, place=place))
    return results


def _answer(
    question: Question, blank: Result, encodings: Encodings, setting: Setting, *, out: Path | None, say: Say, place: str
) -> Result:
    encoder, started = encodings.encoder, time.monotonic()
    cut = encoder.texts_cut
    findings = question.evaluator.run(encodings)
    require_count(question.name, findings.figures.get("samples"), question.samples or None)
    result = _filled(blank, findings, setting, cut=_total(encoder.texts_cut - cut))
    if out is not None:
        distributed.on_rank_0(partial(_write, result, out))
    if result.details["texts_cut"]:
        say(f"warning: {question.name}: {result.details['texts_cut']:,} texts are longer than the context and were cut")
    say(f"{place}: {headline(findings.figures)} ({time.monotonic() - started:.0f} s)")
    return result


def _refuse_foreign(blanks: Sequence[Result], out: Path) -> None:
    for blank in blanks:
        refuse_foreign(out / blank.filename)


def _write(result: Result, out: Path) -> None:
    result.write(out / result.filename)


def require_count(name: str, found: Any, expected: int | None) -> None:
    """Refuse a set of another size than it is known to have: a part of it would give a plausible figure.

    Raises:
        ValueError: With both numbers.
    """
    if expected is not None and isinstance(found, int) and found != expected:
        raise ValueError(
            f"{name}: {found:,} samples, but the whole set has {expected:,}; a figure over a part would not compare: fetch it again"
        )


def headline(figures: Figures) -> str:
    """The first figure of a set and its size, for one line.

    >>> headline({"acc1": 0.5, "samples": 1200})
    'acc1 50.00 %, 1,200 samples'
    """
    name, value = next(iter(figures.items()))
    samples = figures.get("samples")
    return f"{name} {percent(name, value)}" + (f", {samples:,} samples" if isinstance(samples, int) else "")


def with_intervals(findings: Findings, seed: int, *, only_hits: bool = False) -> Figures:
    """The figures, each that is a mean over units followed by its interval ``NAME_ci``.

    Args:
        findings: What was found.
        seed: Decides the draws.
        only_hits: Whether to leave out units of many values (ranks, precisions), whose draws take seconds.
    """
    figures: Figures = {}
    for name, value in findings.figures.items():
        figures[name] = value
        units, clusters, strata = (kept.get(name) for kept in (findings.outcomes, findings.clusters, findings.strata))
        if units is None or value is None or (only_hits and bool(((units != 0) & (units != 1)).any())):
            continue
        figures[f"{name}_ci"] = bootstrap_interval(units, seed=seed, clusters=clusters, strata=strata)
    return figures


def _blank(encoder: Encoder, question: Question, setting: Setting, hashes: Mapping[str, str | None]) -> Result:
    """What is known of a result before it is computed."""
    from importlib.metadata import version

    details = {
        "language": "en",  # CLIP_benchmark's key
        "precision": setting.precision,
        "seed": setting.seed,
        "interval": {"method": "percentile bootstrap", "level": LEVEL, "resamples": RESAMPLES},
        "device": _device_name(encoder),
        "ranks": distributed.world_size(),
        "batch_size": setting.batch_size,
        "hashes": {**hashes, **evaluator_hashes(question.evaluator)},
        "clipkit": version(DISTRIBUTION),
        **({"chance": 1 / len(names)} if (names := _classnames(question.evaluator)) else {}),
        **(question.notes or {}),
    }
    info = encoder.info
    weights = (
        f"{info.pretrained}-average" if info.averaged else info.pretrained or ""
    )  # two results of one step, two files
    return Result(question.name, info.model, weights, question.evaluator.task, {}, details)


def _filled(blank: Result, findings: Findings, setting: Setting, *, cut: int) -> Result:
    details = blank.details | {"texts_cut": cut, **({"details": dict(findings.details)} if findings.details else {})}
    figures = with_intervals(findings, setting.seed)
    return Result(blank.dataset, blank.model, blank.pretrained, blank.task, figures, details)


def _standing(path: Path, blank: Result) -> Result | None:
    """The result that stands there, if everything that decides it is equal; rank 0's answer, on every rank."""
    stored: Any = None
    if distributed.rank() == 0 and path.is_file():
        try:
            stored = json.loads(path.read_text())
        except ValueError:
            stored = None
    stored = distributed.gather_json(stored)[0]
    keys = ("hashes", "precision", "seed", "clipkit")
    if not isinstance(stored, dict) or any(stored.get(key) != blank.details[key] for key in keys):
        return None
    main = ("dataset", "model", "pretrained", "task", "metrics")
    details = {key: value for key, value in stored.items() if key not in main}
    return Result(blank.dataset, blank.model, blank.pretrained, blank.task, stored["metrics"], details)


def _classnames(evaluator: Evaluator) -> Sequence[str]:
    """The names among which a classifier guesses: its chance is one over their number."""
    guesses = hasattr(evaluator, "templates") or hasattr(evaluator, "train")
    return getattr(getattr(evaluator, "data", None), "classnames", ()) if guesses else ()


def _device_name(encoder: Encoder) -> str:
    import platform

    import torch

    device = encoder.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def _total(count: int) -> int:
    return sum(distributed.gather_json(count))
