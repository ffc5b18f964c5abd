"""Charts of an evaluation as SVG text: linear or logarithmic axes, intervals as bands, points to click.

Beside reasoner/charts.py, which draws curves over training steps and shares its colours. The legend is HTML,
so that it wraps on a narrow screen. An oracle curve (somebody knows which sample is right) is dashed with
hollow points, a deployable one solid with filled points, a reference dotted: colour alone tells nothing.
An accuracy axis shows 0 to 1 unless all curves lie close to one end; then it says where it starts or stops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from markupsafe import Markup, escape

from reasoner.charts import ticks

WIDTH, HEIGHT = 420, 262
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 10, 40
_MAX_TICKS = 9

#: (key in eval.json, key of its interval, label, colour, oracle?) in drawing order.
METRICS = (
    ("pass@k", "pass@{}", "pass@k (oracle)", "s1", True),
    ("best_of_k", "best_of_{}", "best of k", "s3", False),
    ("weighted_maj@k", "weighted_maj@{}", "weighted majority", "s2", False),
    ("maj@k", "maj@{}", "majority (maj@k)", "s0", False),
)
Style = Literal["oracle", "deployable", "reference", "histogram", "scatter"]

STYLE = (
    ".xy{font:12px system-ui,sans-serif;overflow:visible}"
    ".xy .line{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".xy .oracle{stroke-dasharray:6 4}.xy .reference{stroke-dasharray:1.5 4;stroke-linecap:round}"
    ".xy .band{opacity:.13;stroke:none}.xy .bin{opacity:.2;stroke:none}"
    ".xy .hollow{fill:var(--card);stroke-width:1.8}"
    ".xy .point{outline:none}.xy .point .halo{fill:transparent;stroke:none}.xy .point.live{cursor:pointer}"
    ".xy .point.live:hover .halo,.xy .point:focus-visible .halo{stroke:var(--text);stroke-width:1.5}"
    ".xy .point.chosen .halo{stroke:var(--text);stroke-width:2}"
)


@dataclass(frozen=True)
class Point:
    """A measured value. `note` is what hovering says beside it; `action` (JSON) goes to the page's script
    when the point is chosen."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    action: str = ""
    radius: float = 3.4


@dataclass(frozen=True)
class Line:
    """One curve; of a `histogram` the points are the bins' left edges, the last one's y is not drawn."""

    label: str
    points: tuple[Point, ...]
    colour: str  # "s0".."s4", or "o0".."o6" for ordered levels
    style: Style = "deployable"


@dataclass(frozen=True)
class Plot:
    """A titled chart with labelled axes. `y_range` fixes the vertical axis."""

    title: str
    lines: tuple[Line, ...]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    x_ticks: tuple[float, ...] | None = None
    caption: str = ""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Where `value` lies between the ends, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def render(plot: Plot) -> Markup:
    """The chart as a `<figure>`; empty when it has no finite value to show."""
    lines = [replace(s, points=kept) for s in plot.lines if (kept := _drawable(plot, s))]
    if not lines:
        return Markup("")
    points = [p for s in lines for p in s.points]
    x = _axis([p.x for p in points], plot.log_x, plot.x_ticks)
    ends = [v for p in points for v in (p.y, p.low, p.high) if v is not None and (v > 0 or not plot.log_y)]
    y = _axis([*ends, *(plot.y_range or ())], plot.log_y, None)
    drawn = "".join([_grid(x, y, plot), *(_line(s, x, y) for s in lines)])
    caption = f"<p>{escape(plot.caption)}</p>" if plot.caption else ""
    return Markup(
        f'<figure class="figure"><figcaption>{escape(plot.title)}</figcaption>{_legend(lines)}'
        f'<svg class="chart xy" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-label="{escape(plot.title)}">{drawn}</svg>{caption}</figure>'
    )


def short(value: float) -> str:
    """A number in few characters: 0.25, 320, 12.8k, 3.1e12."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k" if size < 1e6 * 0.9995 else "1e6"
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def accuracy_plot(
    title: str,
    lines: tuple[Line, ...],
    x_label: str,
    y_label: str = "accuracy",
    *,
    caption: str = "",
    **axes: Any,
) -> Plot:
    """A chart of accuracies (0 to 1) with an axis that is cut where nothing comes close to its end."""
    ends = [v for s in lines for p in s.points for v in (p.y, p.low, p.high) if v is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    bottom = 0.0 if low < 0.6 else math.floor(10 * low) / 10
    top = 1.0 if high > 0.4 else max(0.1, math.ceil(10 * high) / 10)
    if (bottom, top) != (0.0, 1.0):
        caption = f"{caption} The vertical axis shows {bottom:g} to {top:g}.".strip()
    return Plot(title, lines, x_label, y_label, y_range=(bottom, top), caption=caption, **axes)


def _drawable(plot: Plot, line: Line) -> tuple[Point, ...]:
    def fits(value: float, log: bool) -> bool:
        return math.isfinite(value) and (value > 0 or not log)

    return tuple(p for p in line.points if fits(p.x, plot.log_x) and fits(p.y, plot.log_y))


def _axis(values: Sequence[float], log: bool, marks: Sequence[float] | None) -> _Axis:
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - abs(low) / 2 - 0.5, high + abs(high) / 2 + 0.5)
    if marks is None:
        marks = _log_ticks(low, high) if log else ticks(low, high)
    marks = [m for m in marks if low <= m * (1 + 1e-9) and m <= high * (1 + 1e-9)]
    every = math.ceil(len(marks) / _MAX_TICKS)
    return _Axis(low, high, log, tuple((m, short(m)) for m in marks[::every]))


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; 2 and 5 times them as well where there are fewer than three decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1000 else (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    return [m * 10.0**d for d in decades for m in factors]


def _x(axis: _Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: _Axis, value: float) -> float:
    value = max(value, axis.low) if axis.log else value
    return HEIGHT - _BOTTOM - axis.share(value) * (HEIGHT - _TOP - _BOTTOM)


def _grid(x: _Axis, y: _Axis, plot: Plot) -> str:
    bottom, parts = HEIGHT - _BOTTOM, []
    for value, label in y.ticks:
        at = _y(y, value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for value, label in x.ticks:
        at = _x(x, value)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(plot.x_label)}</text>')
    parts.append(
        f'<text transform="translate(10 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(plot.y_label)}</text>"
    )
    return "".join(parts)


def _line(line: Line, x: _Axis, y: _Axis) -> str:
    if line.style == "histogram":
        return _histogram(line, x, y)
    parts = []
    if (upper := [(p.x, p.high) for p in line.points if p.high is not None]) and line.style != "reference":
        lower = [(p.x, p.low) for p in reversed(line.points) if p.low is not None]
        corners = " ".join(f"{_x(x, px):.1f},{_y(y, py):.1f}" for px, py in [*upper, *lower])
        parts.append(f'<polygon class="band f{line.colour}" points="{corners}"/>')
    path = " ".join(f"{_x(x, p.x):.1f},{_y(y, p.y):.1f}" for p in line.points)
    if line.style != "scatter":
        parts.append(f'<polyline class="line {line.style} l{line.colour}" points="{path}"/>')
    if line.style != "reference":
        parts += [_point(line, p, _x(x, p.x), _y(y, p.y)) for p in line.points]
    return "".join(parts)


def _point(line: Line, point: Point, x: float, y: float) -> str:
    interval = "" if point.low is None or point.high is None else f" [{point.low:.3f}, {point.high:.3f}]"
    value = f"{point.y:.3f}" if abs(point.y) <= 10 else short(point.y)
    told = escape(f"{line.label}, {point.note}: {value}{interval}")
    mark = f"l{line.colour} hollow" if line.style == "oracle" else f"f{line.colour}"
    live = ""
    if point.action:
        action = escape(point.action)
        live = (
            f' live" tabindex="0" role="button" aria-label="{told}: show the samples" data-action="{action}'
        )
    return (
        f'<g class="point{live}"><title>{told}</title><circle class="halo" cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
        f'<circle class="{mark}" cx="{x:.1f}" cy="{y:.1f}" r="{point.radius:.1f}"/></g>'
    )


def _histogram(line: Line, x: _Axis, y: _Axis) -> str:
    base, parts, outline = _y(y, y.low), [], []
    for p, end in zip(line.points, line.points[1:], strict=False):
        left, right, top = _x(x, p.x), _x(x, end.x), _y(y, p.y)
        outline += [f"{left:.1f},{top:.1f}", f"{right:.1f},{top:.1f}"]
        told = escape(f"{line.label}, {p.note}: {p.y:.1%}")
        parts.append(
            f'<rect class="bin f{line.colour}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{max(0.0, base - top):.1f}"><title>{told}</title></rect>'
        )
    return "".join(parts) + f'<polyline class="line l{line.colour}" points="{" ".join(outline)}"/>'


def _legend(lines: Sequence[Line]) -> str:
    items = []
    for line in lines:
        mark = f"l{line.colour} hollow" if line.style == "oracle" else f"f{line.colour}"
        pointed = line.style in ("oracle", "deployable", "scatter")
        dot = f'<circle class="{mark}" cx="14" cy="6" r="3.2"/>' if pointed else ""
        stroke = f'<line class="line {line.style} l{line.colour}" x1="0" x2="28" y1="6" y2="6"/>'
        stroke = "" if line.style == "scatter" else stroke
        items.append(
            f'<li><svg class="chart xy" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">'
            f"{stroke}{dot}</svg>"
            f"{escape(line.label)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'
