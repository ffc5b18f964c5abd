"""Small charts as SVG text: lines over steps and stacked shares, for the report and the README's picture.

No library, no script, no network: hovering is CSS and `<title>`. Colours come from `STYLE`, which follows
the reader's light or dark setting. Values are only averaged into buckets when there are more of them than
pixels worth drawing; the raw ones stay in metrics.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 460, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 44, 24
_MAX_POINTS = 150  # a line's points, and columns that answer to the mouse
_MAX_BARS = 60

# Colour-blind safe on their ground: (light, dark) for series 0.. and, dark to light, for ordered levels.
_SERIES = (
    ("#1d5fd0", "#6ea8ff"),
    ("#c2570c", "#ff9d57"),
    ("#0b7a6b", "#3fc7b1"),
    ("#8a3ab9", "#c792ea"),
    ("#68717d", "#8b949e"),
)
_LEVELS = (
    ("#8fc1e3", "#1f5f99"),
    ("#5fa3d3", "#2f7abf"),
    ("#3a86c0", "#4a95dc"),
    ("#2168a8", "#6fb0ee"),
    ("#124c86", "#98c8f7"),
    ("#0a3566", "#bfdefc"),
    ("#05213f", "#e3f1ff"),
)


def _rules(dark: bool) -> str:
    text, faint, grid, ground = (
        ("#e6edf3", "#9198a1", "#30363d", "#0d1117") if dark else ("#1f2328", "#59636e", "#d8dee4", "#ffffff")
    )
    rules = [
        f".chart text{{fill:{faint}}}.chart .strong{{fill:{text}}}.chart .grid{{stroke:{grid}}}",
        f".chart .ground{{fill:{ground}}}.chart .cursor{{stroke:{faint}}}",
    ]
    for prefix, colours in (("s", _SERIES), ("o", _LEVELS)):
        for i, pair in enumerate(colours):
            c = pair[dark]
            rules.append(f".chart .l{prefix}{i}{{stroke:{c}}}.chart .f{prefix}{i}{{fill:{c}}}")
    return "".join(rules)


#: Everything the charts need; goes into a `<style>` of the page or of a stand-alone SVG.
STYLE = (
    ".chart{font:11px system-ui,sans-serif}.chart .strong{font-weight:600;font-size:13px}"
    ".chart polyline{fill:none;stroke-width:1.9;stroke-linejoin:round}"
    ".chart polyline.thin{stroke-width:1;opacity:.75}"
    ".chart .hit rect{fill:transparent}.chart .hit .cursor,.chart .hit text{visibility:hidden}"
    ".chart .hit:hover .cursor,.chart .hit:hover text{visibility:visible}"
    ".chart:hover .legend{visibility:hidden}"
    + _rules(dark=False)
    + "@media (prefers-color-scheme:dark){"
    + _rules(dark=True)
    + "}"
)


@dataclass(frozen=True)
class Series:
    """One line, or one layer of a stack: (step, value) in growing steps."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: str  # "s0".."s4", or "o0".."o6" for ordered levels
    thin: bool = False


@dataclass(frozen=True)
class Chart:
    """A titled chart. `bounds` fixes the value axis; `form` formats its values (a format spec)."""

    title: str
    series: tuple[Series, ...]
    kind: Literal["lines", "shares"] = "lines"
    bounds: tuple[float, float] | None = None
    form: str = ".3g"
    unit: str = ""


def render(chart: Chart) -> str:
    """The chart as an `<svg>` element; "" when it has no finite value to show."""
    series = [_finite(s) for s in chart.series]
    series = [s for s in series if s.points]
    if not series:
        return ""
    body = _shares(chart, series) if chart.kind == "shares" else _lines(chart, series)
    title = f'<text class="strong" x="{_LEFT}" y="14">{escape(chart.title)}</text>'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{title}{body}</svg>'
    )


def picture(charts: Sequence[Chart], title: str, columns: int = 2) -> str:
    """Several charts side by side as one stand-alone SVG file, on a ground of its own."""
    drawn = [text for chart in charts if (text := render(chart))]
    rows = math.ceil(len(drawn) / columns)
    gap, head = 16, 40
    width = columns * WIDTH + (columns + 1) * gap
    height = head + rows * (HEIGHT + gap)
    placed = [
        text.replace(
            "<svg ",
            f'<svg x="{gap + i % columns * (WIDTH + gap)}" y="{head + i // columns * (HEIGHT + gap)}" '
            f'width="{WIDTH}" height="{HEIGHT}" ',
            1,
        )
        for i, text in enumerate(drawn)
    ]
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><style>{STYLE}</style>'
        f'<rect class="ground" width="{width}" height="{height}" rx="8"/>'
        f'<text class="strong" x="{gap + _LEFT}" y="24">{escape(title)}</text>{"".join(placed)}</svg>\n'
    )


def buckets(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most `limit` points, each the mean of neighbours (the last one's step is kept as it is)."""
    if len(points) <= limit:
        return list(points)
    edges = [i * len(points) // limit for i in range(limit + 1)]
    parts = [points[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    means = [(p[len(p) // 2][0], math.fsum(v for _, v in p) / len(p)) for p in parts]
    means[-1] = (points[-1][0], means[-1][1])
    return means


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], about `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _finite(series: Series) -> Series:
    points = tuple((x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y))
    return Series(series.label, points, series.colour, series.thin)


@dataclass(frozen=True)
class _Frame:
    """The plot's rectangle and the data ranges it shows."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0)
        return HEIGHT - _BOTTOM - min(1.0, max(0.0, share)) * (HEIGHT - _TOP - _BOTTOM)


def _frame(steps: Sequence[float], bounds: tuple[float, float]) -> _Frame:
    x0, x1 = min(steps), max(steps)
    y0, y1 = bounds
    if x0 == x1:
        x0, x1 = x0 - 1, x1 + 1
    if y0 == y1:
        y0, y1 = y0 - max(1e-9, abs(y0) / 2), y1 + max(1e-9, abs(y1) / 2)
    return _Frame(x0, x1, y0, y1)


def _bounds(chart: Chart, series: Sequence[Series]) -> tuple[float, float]:
    values = [y for s in series for _, y in s.points]
    if chart.bounds is not None:
        low, high = chart.bounds
        return min(low, *values), max(high, *values)
    low, high = min(values), max(values)
    if low == high == 0:
        return 0.0, 1.0
    if 0 <= low < 0.6 * high:  # a zero line costs little and keeps proportions honest
        low = 0.0
    pad = (high - low) * 0.06
    return (low if low == 0 else low - pad), high + pad


def _value_axis(frame: _Frame, form: str) -> str:
    parts = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_label(value, form)}</text>'
        )
    return "".join(parts)


def _label(value: float, form: str) -> str:
    text = format(value + 0.0, form)
    return text if len(text) <= 6 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _step_axis(frame: _Frame, steps: Sequence[float]) -> str:
    one = len(set(steps)) == 1
    shown = [steps[0]] if one else [t for t in ticks(frame.x0, frame.x1, 5) if t == int(t)]
    parts = []
    for i, value in enumerate(shown):
        x = frame.x(value)
        anchor = "end" if x > WIDTH - 30 else "middle"
        label = f"step {value:g}" if i == len(shown) - 1 else f"{value:g}"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    if len(series) == 1:  # the title says it
        return ""
    parts, x = [], float(_LEFT)
    for s in series:
        parts.append(
            f'<line class="l{s.colour}" x1="{x:.0f}" x2="{x + 14:.0f}" y1="29" y2="29" '
            'stroke-width="3"/>'
            f'<text x="{x + 19:.0f}" y="33">{escape(s.label)}</text>'
        )
        x += 19 + 6.1 * len(s.label) + 14
    return f'<g class="legend">{"".join(parts)}</g>'


def _lines(chart: Chart, series: Sequence[Series]) -> str:
    drawn = [Series(s.label, tuple(buckets(s.points, _MAX_POINTS)), s.colour, s.thin) for s in series]
    steps = [x for s in drawn for x, _ in s.points]
    frame = _frame(steps, _bounds(chart, drawn))
    parts = [_value_axis(frame, chart.form), _step_axis(frame, steps), _legend(drawn)]
    for s in drawn:
        thin = " thin" if s.thin else ""
        coordinates = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in s.points)
        parts.append(f'<polyline class="l{s.colour}{thin}" points="{coordinates}"/>')
        dots = s.points if len(s.points) <= 25 else s.points[-1:]
        parts += [
            f'<circle class="f{s.colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.4"/>'
            for x, y in dots
        ]
    parts.append(_readouts(chart, drawn, frame))
    return "".join(parts)


def _readouts(chart: Chart, series: Sequence[Series], frame: _Frame) -> str:
    """Columns that show, under the mouse, the values of their step in place of the legend; a series without
    a value there shows its last one before, and when that was."""
    steps = sorted({x for s in series for x, _ in s.points})
    steps = steps[:: math.ceil(len(steps) / _MAX_POINTS)]
    middles = [(frame.x(a) + frame.x(b)) / 2 for a, b in zip(steps, steps[1:], strict=False)]
    edges = [_LEFT, *middles, WIDTH - _RIGHT]
    columns = []
    for i, step in enumerate(steps):
        values = []
        for s in series:
            if known := [point for point in s.points if point[0] <= step]:
                x, y = known[-1]
                at = "" if x == step else f" (step {x:g})"
                values.append(f"{s.label} {y:{chart.form}}{chart.unit}{at}")
        columns.append(_column(edges[i], edges[i + 1], frame.x(step), f"step {step:g}: " + ", ".join(values)))
    return "".join(columns)


def _column(left: float, right: float, at: float, text: str) -> str:
    return (
        f'<g class="hit"><rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
        f'height="{HEIGHT - _TOP}"/>'
        f'<line class="cursor" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        f'<text x="{_LEFT}" y="33">{escape(text)}</text></g>'
    )


def _shares(chart: Chart, series: Sequence[Series]) -> str:
    """Stacked bars of each step's shares; the series must have the same steps."""
    layers = [buckets(s.points, _MAX_BARS) for s in series]
    steps = [x for x, _ in layers[0]]
    totals = [math.fsum(layer[i][1] for layer in layers) for i in range(len(steps))]
    width = (WIDTH - _LEFT - _RIGHT) / len(steps)
    frame = _Frame(0, 1, 0, 1)
    parts = [_value_axis(frame, ".0%"), _legend(series)]
    for i, step in enumerate(steps):
        left, base = _LEFT + i * width, 0.0
        for s, layer in zip(series, layers, strict=True):
            share = layer[i][1] / totals[i] if totals[i] > 0 else 0.0
            top, bottom = frame.y(base + share), frame.y(base)
            if bottom - top > 0.05:
                gap = 1.0 if len(steps) <= 20 else 0.0
                parts.append(
                    f'<rect class="f{s.colour}" x="{left:.1f}" y="{top:.1f}" width="{width - gap:.2f}" '
                    f'height="{bottom - top:.1f}"/>'
                )
            base += share
        if i in (0, len(steps) // 2, len(steps) - 1):
            anchor = "end" if i and i == len(steps) - 1 else "middle" if i else "start"
            at = left if anchor == "start" else left + width if anchor == "end" else left + width / 2
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">step {step:g}</text>')
    for i, step in enumerate(steps):
        left = _LEFT + i * width
        values = [
            f"{s.label} {layer[i][1]:{chart.form}}{chart.unit}"
            for s, layer in zip(series, layers, strict=True)
        ]
        parts.append(_column(left, left + width, left + width / 2, f"step {step:g}: " + ", ".join(values)))
    return "".join(parts)
