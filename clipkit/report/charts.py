"""Small charts as inline SVG: no script, no library, every text escaped; colours are classes of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 360, 206
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 34
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name, its points, and which of the page's colours it takes."""

    name: str
    points: Points
    colour: int = 0


@dataclass(frozen=True)
class Bar:
    """One figure of one run: a fraction, its interval, and what chance gives."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    colour: int = 0


@dataclass(frozen=True)
class Axes:
    """From values to places in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in SVG units."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            round(_LEFT + across * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1),
        )


def lines(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    reference: tuple[float, str] | None = None,
    percent: bool = False,
) -> Markup:
    """A line chart.

    Args:
        series: What to draw; empty ones are left out.
        label: What the chart shows, for those who do not see it.
        x_label: What stands below the axis.
        reference: A level to draw across, and what it is called.
        percent: Whether values are fractions, to be written as percent.
    """
    drawn = [one for one in series if one.points]
    ys = [y for one in drawn for _, y in one.points] + ([reference[0]] if reference else [])
    xs = [x for one in drawn for x, _ in one.points]
    axes = Axes(_span(xs, pad=0), _span(ys))
    parts = [_grid(axes, x_label, percent=percent)]
    if reference:
        (left, y), (right, _) = axes.at(axes.x[0], reference[0]), axes.at(axes.x[1], reference[0])
        parts.append(Markup('<line class="ref" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, y, y))
        above = y - 5 if y > _TOP + 16 else y + 14
        parts.append(
            Markup('<text class="reftext" x="{}" y="{}" text-anchor="end">{}</text>').format(right, above, reference[1])
        )
    for one in drawn:
        places = [axes.at(x, y) for x, y in _thinned(one.points)]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(one.colour, path))
        if len(places) <= 12:
            parts += [
                Markup('<circle class="dot s{}" cx="{}" cy="{}" r="2.6"/>').format(one.colour, *p) for p in places
            ]
    return _svg(parts, label)


def histogram(
    series: Sequence[tuple[str, Sequence[int]]], *, span: tuple[float, float], label: str, x_label: str
) -> Markup:
    """Outlines of distributions over the same bins, each as a share of its own total.

    Args:
        series: Name and count in each bin.
        span: Where the first bin begins and the last ends.
        label: What the chart shows, for those who do not see it.
        x_label: What stands below the axis.
    """
    shares = [[count / (sum(counts) or 1) for count in counts] for _, counts in series]
    axes = Axes(span, (0, max((max(share) for share in shares), default=1) * 1.05 or 1))
    parts = [_grid(axes, x_label, percent=True)]
    for colour, share in enumerate(shares):
        width = (span[1] - span[0]) / len(share)
        corners = [axes.at(span[0], 0)]
        for number, value in enumerate(share):
            corners += [axes.at(span[0] + number * width, value), axes.at(span[0] + (number + 1) * width, value)]
        corners.append(axes.at(span[1], 0))
        points = " ".join(f"{x},{y}" for x, y in corners)
        parts.append(Markup('<polygon class="area s{}" points="{}"/>').format(colour, points))
    return _svg(parts, label)


def bars(rows: Sequence[Bar], *, label: str) -> Markup:
    """Horizontal bars from 0 to 100 %, with intervals as whiskers and chance as a tick; labels stand above their bar."""
    row, left, right = 38, 6, 64
    width = WIDTH - left - right
    parts = []
    for number, bar in enumerate(rows):
        top = number * row + 4
        parts.append(Markup('<text class="barname" x="{}" y="{}">{}</text>').format(left, top + 11, bar.label))
        parts.append(
            Markup('<rect class="mat" x="{}" y="{}" width="{}" height="12" rx="2"/>').format(left, top + 16, width)
        )
        long = round(max(0.0, min(1.0, bar.value)) * width, 1)
        parts.append(
            Markup('<rect class="bar s{}" x="{}" y="{}" width="{}" height="12" rx="2"/>').format(
                bar.colour, left, top + 16, long
            )
        )
        if bar.low is not None and bar.high is not None:
            a, b = (round(left + end * width, 1) for end in (bar.low, bar.high))
            path = f"M{a} {top + 18}v8M{b} {top + 18}v8M{a} {top + 22}H{b}"
            parts.append(Markup('<path class="whisker" d="{}"/>').format(path))
        if bar.chance is not None:
            x = round(left + bar.chance * width, 1)
            parts.append(Markup('<path class="chance" d="{}"/>').format(f"M{x} {top + 13}v18"))
        parts.append(
            Markup('<text class="value" x="{}" y="{}">{}</text>').format(
                WIDTH - right + 8, top + 27, f"{100 * bar.value:.1f} %"
            )
        )
    return _svg(parts, label, height=len(rows) * row + 8)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two values.

    >>> ticks(0, 9.3)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [float(f"{(first + i) * step:.12g}") for i in range(count)]


def short(value: float) -> str:
    """A number in few characters.

    >>> short(25600), short(0.00025), short(4.5), short(0), short(1280000000)
    ('25.6k', '2.5e-4', '4.5', '0', '1.28G')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    if 0 < abs(value) < 0.01:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"


def _span(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * pad if high > low else (abs(high) * 0.1 or 1.0) * (pad > 0) or 0.5
    return (low - room, high + room) if high == low or pad else (low, high)


def _thinned(points: Points, most: int = 600) -> Points:
    """At most ``most`` points: of each stretch of many, the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def _grid(axes: Axes, x_label: str, *, percent: bool = False) -> Markup:
    parts = []
    for y in ticks(*axes.y):
        left, at = axes.at(axes.x[0], y)
        right, _ = axes.at(axes.x[1], y)
        text = f"{100 * y:.3g} %" if percent else short(y)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, at, at))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 6, at + 4, text))
    for x in ticks(*axes.x):
        at, bottom = axes.at(x, axes.y[0])
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(at, bottom + 14, short(x)))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, HEIGHT - 5, x_label))
    return Markup("").join(parts)


def _svg(parts: Sequence[Markup], label: str, height: int = HEIGHT) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")
