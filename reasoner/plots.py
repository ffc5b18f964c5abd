"""The main curves of an evaluation as PNG and SVG files, for papers and READMEs (matplotlib, loaded on use).

The page (reasoner/eval_page.py) has the same curves to click on. Oracle curves are dashed with hollow points
here as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoner.charts import Chart
from reasoner.curves import get
from reasoner.durable import disk_errors
from reasoner.eval_charts import METRICS
from reasoner.eval_sections import spread_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
_COLOURS = {"s0": "#1d5fd0", "s1": "#c2570c", "s2": "#0b7a6b", "s3": "#8a3ab9", "s4": "#68717d"}


def write_plots(result: Mapping[str, Any], directory: Path) -> list[Path]:
    """Writes `scaling_SPLIT`, `budgets_SPLIT` and `exchange_rate` as PNG and SVG, as far as `result` (the
    contents of eval.json) has them, and returns their paths.

    Raises ReasonerError when they cannot be written."""
    figures: dict[str, Figure] = {}
    for name, split in (result.get("splits") or {}).items():
        if split.get("pass@k"):
            figures[f"scaling_{name}"] = scaling_figure(name, split)
    for name, entry in (get(result, "budgets", "splits") or {}).items():
        if points := [p for p in entry.get("points") or () if p.get("accuracy") is not None]:
            figures[f"budgets_{name}"] = budgets_figure(name, points)
    if get(result, "exchange_rate", "deployable", "iso_accuracy"):
        figures["exchange_rate"] = exchange_figure(result["exchange_rate"])
    written = []
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for form in FORMATS:
                written.append(directory / f"{name}.{form}")
                figure.savefig(written[-1], dpi=160, metadata={"Date": None} if form == "svg" else None)
    return written


def scaling_figure(name: str, split: Mapping[str, Any]) -> Figure:
    """Accuracy against samples, tokens and FLOPs, as far as the costs are known."""
    costs = [("samples a problem, k", 1.0)]
    costs += [
        (label, float(split[key]))
        for key, label in (
            ("response_tokens_mean", "tokens generated a problem"),
            ("flops_per_sample", "inference FLOPs a problem"),
        )
        if split.get(key)
    ]
    figure, axes = _figure(len(costs))
    for axis, (label, each) in zip(axes, costs, strict=True):
        for key, interval, curve, series, oracle in METRICS:
            colour = _COLOURS[series]
            values = sorted((int(k), v) for k, v in (split.get(key) or {}).items())
            if not values:
                continue
            ends = [get(split, "ci95", interval.format(k)) or (v, v) for k, v in values]
            x = [k * each for k, _ in values]
            _curve(axis, x, [v for _, v in values], curve, colour, oracle)
            axis.fill_between(x, [e[0] for e in ends], [e[1] for e in ends], color=colour, alpha=0.12, lw=0)
        _logarithmic(axis, label, base=2 if each == 1.0 else 10)
    axes[0].set_ylabel("accuracy")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{name}: {split.get('problems', '?')} problems, bands: 95 % over problems", fontsize=10)
    return figure


def budgets_figure(name: str, points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against the tokens really spent, a point a budget: one sample, and votes of all samples."""
    figure, (axis,) = _figure(1)
    order = sorted((p for p in points if p.get("tokens_mean")), key=lambda p: p["tokens_mean"])
    _curve(
        axis,
        [p["tokens_mean"] for p in order],
        [p["accuracy"] for p in order],
        "one sample",
        _COLOURS["s4"],
        False,
    )
    ks = sorted({int(k) for p in order for k in p.get("maj@k") or {}})
    if ks and ks[-1] > 1:
        voted = [p for p in order if get(p, "maj@k", str(ks[-1])) is not None]
        x = [ks[-1] * p["tokens_mean"] for p in voted]
        y = [p["maj@k"][str(ks[-1])] for p in voted]
        _curve(axis, x, y, f"majority of {ks[-1]}", _COLOURS["s0"], False)
    _logarithmic(axis, "tokens generated a problem")
    axis.set_ylabel("accuracy")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(f"{name}: thinking budgets", fontsize=10)
    return figure


def exchange_figure(rate: Mapping[str, Any]) -> Figure:
    """Lines of equal accuracy: cumulative training FLOPs against FLOPs a query; the oracle's apart."""
    from matplotlib import colormaps

    figure, axes = _figure(2)
    for axis, kind, title in zip(
        axes, ("deployable", "oracle"), ("majority votes", "pass@k (oracle)"), strict=True
    ):
        targets = spread_targets(rate[kind]["iso_accuracy"])
        for i, target in enumerate(targets):
            reached = [c for c in target["checkpoints"] if c["flops_per_query"] is not None]
            x, y = [c["train_flops"] for c in reached], [c["flops_per_query"] for c in reached]
            colour = colormaps["viridis"](0.9 * i / max(1, len(targets) - 1))
            _curve(axis, x, y, f"{target['accuracy']:.2f}", colour, kind == "oracle")
        axis.set_yscale("log")
        axis.set_xlabel("cumulative training FLOPs")
        axis.set_title(title, fontsize=9)
        axis.legend(
            frameon=False,
            fontsize=8,
            title="accuracy",
            title_fontsize=8,
            loc="upper left",
            bbox_to_anchor=(1, 1),
        )
    axes[0].set_ylabel("inference FLOPs a query")
    return figure


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.4), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curve(axis: Axes, x: Sequence[float], y: Sequence[float], label: str, colour: Any, oracle: bool) -> None:
    axis.plot(
        x,
        y,
        label=label,
        color=colour,
        marker="o",
        markersize=4,
        linestyle="--" if oracle else "-",
        markerfacecolor="none" if oracle else colour,
    )


def _logarithmic(axis: Axes, label: str, base: int = 10) -> None:
    axis.set_xscale("log", base=base)
    if base == 2:
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel(label)


def charts_figure(charts: Sequence[Chart]) -> Figure:
    """Line charts of a run (reasoner.curves) side by side."""
    figure, axes = _figure(len(charts))
    for axis, chart in zip(axes, charts, strict=True):
        for series in chart.series:
            if series.points:
                x, y = zip(*series.points, strict=True)
                axis.plot(
                    x, y, label=series.label, color=_COLOURS[series.colour], lw=1 if series.thin else 1.8
                )
        axis.set_title(chart.title, fontsize=9)
        axis.set_xlabel("step")
        if chart.bounds:
            axis.set_ylim(chart.bounds[0], chart.bounds[1] * 1.02)
        axis.legend(frameon=False, fontsize=8)
    return figure
