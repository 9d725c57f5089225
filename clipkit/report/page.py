"""The page itself: everything escaped by the template engine, nothing fetched, and a policy that lets nothing in."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from clipkit.data.visible import visible
from clipkit.evaluation.result import percent
from clipkit.evaluation.samples import ImageFile
from clipkit.report import charts
from clipkit.report.comparison import Difference
from clipkit.report.pictures import sprite, thumbnail
from clipkit.report.record import Record
from clipkit.report.study import Figure, Gap, Map, Study

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST = 200  # characters of a caption or a class name


@dataclass(frozen=True)
class Side:
    """One run of the page."""

    record: Record
    studies: tuple[Study, ...]
    missing: tuple[str, ...]


def render(
    sides: Sequence[Side],
    differences: Sequence[Difference],
    config: Sequence[tuple[str, str, str]],
    *,
    side: int,
    pictured: int,
) -> str:
    """The page as HTML.

    Args:
        sides: One run or two.
        differences: Figures of both.
        config: Keys that differ, with both values.
        side: Longest side of a thumbnail in pixels.
        pictured: Tasks whose pictures are shown; the others have their figures alone.
    """
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    by_name: dict[str, Study] = {}
    for one in sides:  # of two runs the first one's pictures, where it has the task
        for found in one.studies:
            by_name.setdefault(found.name, found)
    studies = list(by_name.values())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "percent": _percent,
        "thumbnail": _Thumbnails(side),
        "p": _p,
        "told": _told,
        "change": partial(_told, sign=True),
    }
    return environment.get_template("report.html.j2").render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        sides=sides,
        training=[chart for chart in map(partial(_training, sides), _CHARTS) if chart is not None],
        evaluated=_evaluated(sides),
        bars=[(study.name, _bars(sides, study.name)) for study in studies if study.figures],
        differences=differences,
        config=config,
        studies=studies[:pictured],
        unpictured=[study.name for study in studies[pictured:]],
        gap_chart=_gap_chart,
        map_data=partial(_map_data, side=max(24, side // 2)),
        side=side,
        two=len(sides) == 2,
    )


@dataclass(frozen=True)
class _Chart:
    title: str
    figures: tuple[str, ...]
    says: str
    percent: bool = False


_CHARTS = (
    _Chart("Loss", ("train/loss", "val/loss"), "Mean over the global batch, in nats; lower is better."),
    _Chart("Logit scale", ("train/logit_scale",), "Inverse temperature, exponentiated: logits are scale times cosine."),
    _Chart("Learning rate", ("train/lr",), "Of the layers nearest to the output, at the step."),
    _Chart(
        "Throughput",
        ("train/samples_per_second",),
        "Pairs a second over all ranks, evaluations and checkpoints left out.",
    ),
    _Chart(
        "Waiting for data",
        ("train/data_wait",),
        "Share of the step's time spent waiting for the loader; the rest is the towers, the loss and the optimiser.",
        percent=True,
    ),
    _Chart("Gradient norm", ("train/grad_norm",), "Over all parameters, before clipping."),
)


def _training(sides: Sequence[Side], chart: _Chart) -> dict[str, Any] | None:
    series, legend = [], []
    for number, side in enumerate(sides):
        for offset, figure in enumerate(chart.figures):
            for name in _named(side.record, figure):
                points = side.record.series(name)
                if points:
                    colour = 2 * number + offset if len(chart.figures) > 1 else 2 * number
                    series.append(charts.Series(name, points, colour))
                    words = name if len(sides) == 1 else f"{side.record.name}: {name}"
                    tell = _percent if chart.percent else charts.short
                    legend.append((colour, f"{words}: {tell(points[0][1])} to {tell(points[-1][1])}"))
    if not series:
        return None
    guessing = _guessing(sides) if chart.title == "Loss" else None
    svg = charts.lines(
        series,
        label=f"{chart.title} over samples seen",
        x_label="samples seen",
        reference=guessing,
        percent=chart.percent,
    )
    return {"title": chart.title, "says": chart.says, "svg": svg, "legend": legend}


def _guessing(sides: Sequence[Side]) -> tuple[float, str] | None:
    """The loss of a model that knows nothing, where it is the logarithm of the batch: one InfoNCE, one batch size."""
    losses = [tuple(side.record.config.losses.values()) for side in sides]
    plain = all(len(specs) == 1 and specs[0].kind == "infonce" and specs[0].weight == 1 for specs in losses)
    sizes = {side.record.config.data.batch_size for side in sides}
    if not plain or len(sizes) != 1:
        return None
    batch = sizes.pop()
    return math.log(batch), f"guessing: ln {batch:,} = {math.log(batch):.2f}"


def _named(record: Record, figure: str) -> list[str]:
    """The figure itself, or its parts where a run has one for each pair."""
    return [
        name
        for name in record.figures(figure)
        if name == figure or (figure == "train/logit_scale" and name.startswith(f"{figure}/"))
    ]


def _evaluated(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Figures of the evaluations in training, one chart a task: its first figure, of every run."""
    found = []
    tasks = dict.fromkeys(task for side in sides for task in side.record.config.evaluate.tasks)
    for task in tasks:
        series, legend = [], []
        for number, side in enumerate(sides):
            names = [name for name in side.record.figures(f"val/{task}/") if len(side.record.series(name)) > 1]
            if names:
                series.append(charts.Series(names[0], side.record.series(names[0]), 2 * number))
                legend.append((2 * number, names[0] if len(sides) == 1 else f"{side.record.name}: {names[0]}"))
        if series:
            svg = charts.lines(series, label=f"{task} over samples seen", x_label="samples seen", percent=True)
            found.append({"title": task, "says": "Measured by the run itself.", "svg": svg, "legend": legend})
    return found


def _bars(sides: Sequence[Side], task: str) -> dict[str, Any]:
    rows, table = [], []
    for number, side in enumerate(sides):
        study = next((one for one in side.studies if one.name == task), None)
        for place, figure in enumerate(study.figures if study else ()):
            label = figure.name if len(sides) == 1 else f"{figure.name}, {side.record.name}"
            bar = charts.Bar(label, figure.value, figure.low, figure.high, figure.chance, 2 * number)
            rows.append((place, number, bar, figure))
    rows.sort(key=lambda row: row[:2])
    table = [_described(bar.label, figure) for *_, bar, figure in rows]
    fractions = [bar for *_, bar, figure in rows if is_fraction(figure.name)]
    sure = [bar for bar in fractions if bar.low is not None]
    headline = [bar for bar in sure if bar.chance is not None]
    drawn = headline or sure or fractions  # the others stand in the table
    label = f"{task}: " + "; ".join(f"{bar.label} {_percent(bar.value)}" for bar in drawn)
    return {"svg": charts.bars(drawn, label=label) if drawn else None, "table": table}


def _described(label: str, figure: Figure) -> dict[str, Any]:
    known = figure.low is not None and figure.high is not None
    ends = f"{_told(figure.name, figure.low)} to {_told(figure.name, figure.high)}" if known else "none"
    chance = "unknown" if figure.chance is None else _told(figure.name, figure.chance)
    return {
        "label": label,
        "value": _told(figure.name, figure.value),
        "interval": ends,
        "chance": chance,
        "n": figure.n,
    }


def is_fraction(name: str) -> bool:
    """Whether a figure is a share, which is told in percent: what ``clipkit evaluate`` tells so.

    >>> is_fraction("acc1"), is_fraction("image_retrieval_mean_rank")
    (True, False)
    """
    return percent(name, 0.5).endswith("%")


def _told(name: str, value: float | None, *, sign: bool = False) -> str:
    """A figure in its own unit; a difference of fractions in percentage points, without their sign for percent."""
    if value is None:
        return "none"
    scaled, unit, digits = (100 * value, "" if sign else " %", 1) if is_fraction(name) else (value, "", 2)
    return f"{scaled:+.{digits}f}" if sign else f"{scaled:.{digits}f}{unit}"


def _gap_chart(gap: Gap) -> Markup:
    return charts.histogram(
        list(zip(gap.names, gap.counts, strict=True)),
        span=gap.span,
        label="Distribution of cosines: " + ", ".join(gap.names),
        x_label="cosine",
    )


def _map_data(found: Map, *, side: int) -> dict[str, Any]:
    """The sprite, and place and words of every point."""
    sheet = sprite([point.image for point in found.points], side)
    points = [
        {
            "x": round(20 + 600 * float(x), 1),
            "y": round(20 + 400 * float(1 - y), 1),
            "right": point.right,
            "words": _words(point),
        }
        for point, (x, y) in zip(found.points, found.xy.tolist(), strict=True)
    ]
    return {"uri": Markup(sheet.uri), "columns": sheet.columns, "side": sheet.side, "points": points}


def _words(point: Any) -> str:
    label = visible(point.label, _LONGEST)
    if not point.said:
        return f"{label}: {'found' if point.right else 'not found'} at rank 1"
    return f"{label}: recognised" if point.right else f"{label}: taken for {visible(point.said, _LONGEST)}"


class _Thumbnails:
    """Encodes each picture of a page once."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.held: dict[ImageFile, Markup] = {}

    def __call__(self, image: ImageFile) -> Markup:
        if image not in self.held:
            self.held[image] = Markup(thumbnail(image, self.side))
        return self.held[image]


def _shown(value: Any) -> Any:
    """What hides or reorders its neighbours is spelled out, and very long texts are cut; our own markup is left alone."""
    return visible(value, 1_000) if isinstance(value, str) and not isinstance(value, Markup) else value


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.001 else "< 0.001"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
