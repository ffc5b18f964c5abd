"""The parts of the evaluation page beside the main curves: thinking budgets, exchange rate, and what the
single samples show. Pure functions from eval.json and problems to figures and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from reasoner.curves import get
from reasoner.eval_charts import Line, Plot, Point, Style, accuracy_plot, render, short
from reasoner.eval_samples import Problem, calibration, length_histogram

_MAX_LEVELS = 7  # lines of equal accuracy in one chart
#: (key of a budget's curve, label, colour, style, which of its k by their number)
_BUDGET_CURVES: tuple[tuple[str, str, str, Style, Callable[[int], int]], ...] = (
    ("pass@k", "one sample", "s4", "deployable", lambda count: 0),
    ("maj@k", "majority of {}", "s2", "deployable", lambda count: count // 2),
    ("maj@k", "majority of {}", "s0", "deployable", lambda count: -1),
    ("pass@k", "any of {} (oracle)", "s1", "oracle", lambda count: -1),
)


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


# ---------------------------------------------------------------------- thinking budgets


@dataclass(frozen=True)
class Budgets:
    split: str
    figure: Markup
    grid: Table
    shades: tuple[tuple[int, ...], ...]  # of the grid's cells: 0-100, same shape
    s1: str


def budgets(result: Mapping[str, Any], name_of: Callable[[str], str]) -> list[Budgets]:
    """Accuracy against the tokens really spent, and samples × budget, for every split that has budgets."""
    found = []
    for name, entry in (get(result, "budgets", "splits") or {}).items():
        points = [p for p in entry.get("points") or () if p.get("accuracy") is not None]
        if points:
            grid, shades = _grid(points)
            s1 = _s1(entry.get("s1") or {})
            found.append(Budgets(name_of(name), _budget_figure(points), grid, shades, s1))
    return found


def _budget_name(point: Mapping[str, Any]) -> str:
    if point.get("budget") is not None:
        return f"{point['budget']} tokens"
    return f"extended {point['times']}×" if point.get("times") is not None else "no limit"


def _budget_figure(points: Sequence[Mapping[str, Any]]) -> Markup:
    """A line a number of samples: the budgets in order of the tokens spent on k samples."""
    lines: list[Line] = []
    for key, label, colour, style, pick in _BUDGET_CURVES:
        ks = sorted({int(k) for p in points for k in p.get(key) or {}})
        k = ks[pick(len(ks))] if ks else 0
        if not ks or any(line.label == label.format(k) for line in lines):
            continue
        along = [
            Point(k * p["tokens_mean"], v, note=_budget_name(p))
            for p in points
            if (v := get(p, key, str(k))) is not None and p.get("tokens_mean")
        ]
        lines.append(Line(label.format(k), tuple(sorted(along, key=lambda p: p.x)), colour, style))
    return render(
        accuracy_plot(
            "Accuracy against tokens, a point a budget",
            tuple(lines),
            "tokens generated a problem",
            log_x=True,
            caption="Forced answers are counted in the tokens.",
        )
    )


def _grid(points: Sequence[Mapping[str, Any]]) -> tuple[Table, tuple[tuple[int, ...], ...]]:
    """Samples × budget: maj@k, or pass@k where answers have no classes."""
    key = "maj@k" if any(p.get("maj@k") for p in points) else "pass@k"
    ks = sorted({int(k) for p in points for k in p.get(key) or {}})
    cells = [[get(p, key, str(k)) for k in ks] for p in points]
    known = [v for row in cells for v in row if v is not None]
    low, spread = min(known, default=0.0), max(known, default=1.0) - min(known, default=0.0)
    shades = tuple(
        tuple(0 if v is None else round(100 * (v - low) / (spread or 1)) for v in row) for row in cells
    )
    rows = tuple(
        (_budget_name(p), *("–" if v is None else f"{v:.3f}" for v in row))
        for p, row in zip(points, cells, strict=True)
    )
    kind = "deployable" if key == "maj@k" else "oracle"
    return Table(("thinking budget", *(f"k = {k}" for k in ks)), rows, f"{key} ({kind})"), shades


def _s1(metrics: Mapping[str, Any]) -> str:
    names = (
        ("control", "control", "{:.1%}"),
        ("scaling_per_1000_tokens", "scaling", "{:+.3f} accuracy a 1000 tokens"),
        ("performance", "performance", "{:.3f}"),
    )
    parts = [
        f"{label} {form.format(metrics[key])}" for key, label, form in names if metrics.get(key) is not None
    ]
    return " · ".join(parts)


# ---------------------------------------------------------------------- exchange rate


@dataclass(frozen=True)
class Exchange:
    kind: str
    figure: Markup
    break_even: Table
    equal: Table


def exchange(rate: Mapping[str, Any] | None) -> list[Exchange]:
    """The deployable and the oracle exchange rate, apart."""
    found = []
    for kind in ("deployable", "oracle"):
        entry = get(rate, kind)
        if entry and entry.get("iso_accuracy"):
            figure = _iso_figure(entry["iso_accuracy"], kind)
            break_even = _break_even(entry["iso_accuracy"])
            found.append(Exchange(kind, figure, break_even, _equal(entry.get("samples_as_training") or ())))
    return found


def spread_targets(targets: Sequence[Mapping[str, Any]], most: int = _MAX_LEVELS) -> list[Mapping[str, Any]]:
    """At most `most` of the targets that some checkpoint reaches, evenly spread, both ends among them."""
    reached = [t for t in targets if any(c["flops_per_query"] is not None for c in t["checkpoints"])]
    count = min(most, len(reached))
    return [reached[round(i * (len(reached) - 1) / max(1, count - 1))] for i in range(count)]


def _iso_figure(targets: Sequence[Mapping[str, Any]], kind: str) -> Markup:
    """A line of equal accuracy a target: training FLOPs against FLOPs a query."""
    chosen = spread_targets(targets)
    style: Style = "oracle" if kind == "oracle" else "deployable"
    lines = []
    for i, target in enumerate(chosen):
        points = []
        for c in target["checkpoints"]:
            if c["flops_per_query"] is not None:
                note = f"{c['checkpoint']}, {c['samples']:.3g} samples"
                points.append(Point(c["train_flops"], c["flops_per_query"], note=note))
        colour = f"o{i * _MAX_LEVELS // len(chosen)}"
        lines.append(Line(f"{target['accuracy']:.2f}", tuple(points), colour, style))
    what = "majority votes" if kind == "deployable" else "pass@k, oracle"
    return render(
        Plot(
            f"Equal accuracy: training against sampling ({what})",
            tuple(lines),
            "cumulative training FLOPs",
            "inference FLOPs a query",
            log_y=True,
            caption="A line is one accuracy; a point a checkpoint that reaches it.",
        )
    )


def _break_even(targets: Sequence[Mapping[str, Any]]) -> Table:
    """The least against the most trained checkpoint, for the accuracies that one of them reaches."""
    rows = []
    for target in targets:
        first, last = target["checkpoints"][0], target["checkpoints"][-1]
        if first["samples"] is not None or last["samples"] is not None:
            rows.append(
                (
                    f"{target['accuracy']:.2f}",
                    _or_null(first["samples"]),
                    _or_null(first["flops_per_query"]),
                    _or_null(last["samples"]),
                    _or_null(last["flops_per_query"]),
                    _pays(first, last),
                )
            )
    names = targets[0]["checkpoints"]
    first, last = names[0]["checkpoint"], names[-1]["checkpoint"]
    head = (
        "accuracy",
        f"samples, {first}",
        "FLOPs a query",
        f"samples, {last}",
        "FLOPs a query",
        "pays after (queries)",
    )
    extra = short(names[-1]["extra_train_flops"])
    return Table(head, tuple(rows), f"Training from {first} to {last} took {extra} FLOPs. –: out of reach.")


def _pays(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    if first["samples"] is None:
        return "the only way"
    if last["samples"] is None:
        return "–"
    return "never" if last["break_even_queries"] is None else short(last["break_even_queries"])


def _equal(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        ("samples", "accuracy", "FLOPs a query", "equal training FLOPs", "pays after (queries)"),
        tuple(
            (
                f"{r['samples']:g}",
                f"{r['accuracy']:.3f}",
                short(r["flops_per_query"]),
                _or_null(r["equal_train_flops"]),
                _or_null(r["break_even_queries"]),
            )
            for r in rows
        ),
        "The training after which one sample is as accurate as that many of the least trained checkpoint.",
    )


def _or_null(value: float | None) -> str:
    return "–" if value is None else short(value)


# ---------------------------------------------------------------------- from the samples


def sample_figures(problems: Sequence[Problem]) -> list[Markup]:
    bins, error = calibration(problems)
    most = max((b.problems for b in bins), default=1)
    points = tuple(
        Point(b.share, b.right, note=f"{b.problems} problems", radius=2 + 4.5 * math.sqrt(b.problems / most))
        for b in bins
    )
    edges, shares = length_histogram(problems)
    ideal = Line("as often right as voted for", (Point(0, 0), Point(1, 1)), "s4", "reference")
    measured = Line("winning answers", points, "s0", "scatter")
    gap = (
        ""
        if error is None
        else f"Larger points: more problems. Their mean distance from the dotted line is {error:.3f}."
    )
    plots = [
        Plot(
            "Does the vote share tell how likely the answer is right?",
            (ideal, measured) if points else (),
            "share of votes for the winning answer",
            "right",
            y_range=(0, 1),
            caption=gap,
        )
    ]
    lengths = []
    for (name, heights), colour in zip(shares.items(), ("s2", "s1"), strict=False):
        ends = zip(edges, edges[1:], heights, strict=False)
        marks = [Point(float(a), float(h), note=f"{a}–{b - 1} tokens") for a, b, h in ends]
        marks.append(replace(marks[-1], x=float(edges[-1])))
        lengths.append(Line(name, tuple(marks), colour, "histogram"))
    plots.append(Plot("Length of the samples", tuple(lengths), "tokens", "share of samples", y_range=(0, 0)))
    return [figure for plot in plots if (figure := render(plot))]
