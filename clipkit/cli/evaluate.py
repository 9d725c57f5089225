"""``clipkit evaluate``: a model on data sets, as a table and as files, on one process or on ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from clipkit import api, distributed
from clipkit.callbacks.say import say
from clipkit.cli.evaluate_progress import Watch
from clipkit.data.index import default_cache
from clipkit.evaluation.engine import Question, Setting, evaluate_sets
from clipkit.evaluation.kinds import build_evaluator, task_spec
from clipkit.evaluation.out import FILES, check_count, check_out
from clipkit.evaluation.places import EMBEDDED
from clipkit.evaluation.result import table, write_results
from clipkit.evaluation.suites import Suite, find_sets, load_suite, summary, summary_lines, write_summary
from clipkit.hardware import pick_device
from clipkit.quiet import quieten


@dataclass(frozen=True)
class Asked:
    """The command line of ``clipkit evaluate``."""

    model: str
    data: Sequence[str]
    task: str | None
    options: Sequence[str]
    suite: str | None
    root: str | None
    out: Path | None
    device: str
    setting: Setting
    average: bool = True
    trust_code: bool = False


def evaluate_all(asked: Asked) -> None:
    """Score a model on each data set, print percent and write fractions.

    Raises:
        ValueError: If anything that was asked for cannot be had.
    """
    quieten()
    local, nodes = distributed.launcher_world()
    device = pick_device(asked.device)
    distributed.init(local * nodes, gpu=device.startswith("cuda"))
    if asked.out is not None:
        distributed.on_rank_0(partial(check_out, asked.out))
    suite, questions = _questions(asked)
    if asked.out is not None:
        check_count(asked.out, len(questions))
    torch.manual_seed(asked.setting.seed)  # random weights, where there are no others, are the same on every rank
    encoder = api.load(asked.model, device=device, average=asked.average, trust_code=asked.trust_code)
    folder = asked.out if asked.out is not None and asked.out.suffix not in FILES else None
    with Watch(sum(question.samples for question in questions)) as watch:
        results = evaluate_sets(encoder, questions, asked.setting, out=folder, say=watch.say, on_images=watch.on_images)
    if distributed.rank() == 0:
        Console().print(table(results))
        if suite is not None:
            found = summary(suite, results)
            print("\n".join(summary_lines(suite, found)))
            if folder is not None:
                print(f"written to {write_summary(suite, found, folder)}")
        if asked.out is not None and folder is None:
            write_results(results, asked.out)
        if asked.out is not None:
            print(f"written to {asked.out}")
    distributed.barrier()


def _questions(asked: Asked) -> tuple[Suite | None, list[Question]]:
    cache, options = default_cache(), _options(asked.options)
    if asked.suite is None:
        if not asked.data:
            raise ValueError("nothing to evaluate on: give --data PATH, or --suite NAME --root DIR")
        specs = [task_spec(place, cache, kind=asked.task, options=options) for place in asked.data]
        return None, [
            Question(_name(place), build_evaluator(spec, cache)) for place, spec in zip(asked.data, specs, strict=True)
        ]
    if asked.data or asked.task or options:
        raise ValueError("--suite names its own data and tasks; leave --data, --task and --option out")
    suite = load_suite(asked.suite)
    found, missing = find_sets(suite, asked.root, cache)
    if missing:
        say(f"{suite.name}: {len(missing)} of {len(suite.sets)} sets are not there: {', '.join(missing)}")
    if not found:
        raise ValueError(
            f"{suite.name}: none of its sets lies in {asked.root}; fetch them, or name their folder with --root"
        )
    questions = []
    for name, place in found.items():
        entry = suite.sets[name]
        spec = task_spec(place, cache, kind=entry.task, options=entry.options)
        questions.append(Question(name, build_evaluator(spec, cache), entry.samples, {"suite": suite.name}))
    return suite, questions


def _options(given: Sequence[str]) -> dict[str, Any]:
    """``key=value`` with YAML's values."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"--option {text}: write key=value, such as templates='a photo of a {{c}}.'")
        # a text with braces, such as a template, is no YAML mapping
        try:
            found[key] = value if "{" in value and not value.startswith(("{", "[")) else yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"--option {key}: the value is no plain YAML ({str(error).splitlines()[0]})") from error
    return found


def _name(place: str) -> str:
    if place.startswith(EMBEDDED):
        return place.removeprefix(EMBEDDED)
    return place.rstrip("/").rsplit("/", 1)[-1] if "://" in place else Path(place).resolve().stem
