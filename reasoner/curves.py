"""Which curves of a run are drawn: from the lines of metrics.jsonl to charts. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from reasoner.charts import Chart, Series, render
from reasoner.metrics import PHASES

Entries = Sequence[Mapping[str, Any]]
_MAX_LEVELS = 7
_WINDOWS = 10
_STYLE_COLOURS = {"direct": "s4", "working": "s0", "corrected": "s2"}


def sections(entries: Entries) -> list[tuple[str, list[str]]]:
    """The report's curves as (heading, SVGs); charts without a value are left out."""
    line, steps = _line_chart, [e for e in entries if e["step"] > 0]
    planned: list[tuple[str, list[Chart]]] = [
        ("What it learned", [pass_chart(entries), length_chart(entries)]),
        (
            "By difficulty and by style",
            [
                difficulty_chart(entries, "held_out"),
                difficulty_chart(entries, "ood"),
                *style_charts(entries),
                line(
                    entries,
                    "Self-corrected, cut off, without an answer",
                    [
                        ("self-corrected", "self_corrected_rate"),
                        ("truncated", "truncated_rate"),
                        ("unparsed", "unparsed_rate"),
                    ],
                    form=".1%",
                ),
            ],
        ),
        ("By family of tasks", family_charts(entries)),
        (
            "Learning",
            [
                line(entries, "Reward before filtering", [("reward", "reward_mean")]),
                line(entries, "Entropy of the policy, nats a token", [("entropy", "entropy")]),
                line(
                    entries,
                    "KL(behaviour ‖ learner), nats a token",
                    [("kl_behaviour", "kl_behaviour")],
                    form=".2g",
                ),
                line(entries, "Gradient norm before clipping", [("gradient norm", "grad_norm")]),
                line(
                    entries,
                    "Clipped ratios and effective sample size",
                    [("clip rate", "clip_rate"), ("ess", "ess")],
                ),
                line(
                    entries,
                    "Groups left out of a step",
                    [("filtered", "filtered_groups"), ("stale", "dropped_stale")],
                ),
                curriculum_chart(entries),
            ],
        ),
        (
            "Speed",
            [
                _time_chart(entries),
                line(steps, "Seconds a step", [("total", "seconds/total")]),
                line(
                    entries,
                    "Tokens a second",
                    [("sampled", "sampler_tokens_per_s"), ("learned", "learner_tokens_per_s")],
                    form=",.0f",
                ),
                line(
                    entries,
                    "Staleness, policy versions",
                    [("mean", "staleness_mean"), ("max", "staleness_max")],
                ),
                line(
                    entries,
                    "Verifier trouble, rollouts a step",
                    [("timeouts", "verifier_timeouts"), ("errors", "verifier_errors")],
                ),
            ],
        ),
    ]
    drawn = [(title, [svg for chart in charts if (svg := render(chart))]) for title, charts in planned]
    return [(title, svgs) for title, svgs in drawn if svgs]


def _line_chart(entries: Entries, title: str, lines: Sequence[tuple[str, str]], form: str = ".3g") -> Chart:
    series = [
        Series(label, tuple(curve(entries, *path.split("/"))), f"s{i}")
        for i, (label, path) in enumerate(lines)
    ]
    return Chart(title, tuple(series), form=form)


def pass_chart(entries: Entries) -> Chart:
    series = (
        Series("training", tuple(curve(entries, "pass_rate")), "s4", thin=True),
        Series("held-out", tuple(curve(entries, "eval", "held_out", "pass@1")), "s0"),
        Series("out of distribution", tuple(curve(entries, "eval", "ood", "pass@1")), "s1"),
    )
    return Chart("Right at the first attempt (pass@1)", series, bounds=(0, 1), form=".2f")


def length_chart(entries: Entries) -> Chart:
    series = (
        Series("training", tuple(curve(entries, "response_tokens_mean")), "s4", thin=True),
        Series("held-out", tuple(curve(entries, "eval", "held_out", "response_tokens_mean")), "s0"),
        Series("out of distribution", tuple(curve(entries, "eval", "ood", "response_tokens_mean")), "s1"),
    )
    return Chart("Response length, tokens (never rewarded)", series, form=".4g")


def difficulty_chart(entries: Entries, split: str) -> Chart:
    """pass@1 a difficulty level; more than seven levels are merged with their neighbours."""
    levels = sorted({lv for e in entries for lv in get(e, "eval", split, "by_difficulty") or {}}, key=float)
    count = min(_MAX_LEVELS, len(levels))
    bins = [levels[i * len(levels) // count : (i + 1) * len(levels) // count] for i in range(count)]
    series = []
    for i, members in enumerate(bins):
        points = []
        for e in entries:
            rates = [
                v for lv in members if (v := get(e, "eval", split, "by_difficulty", lv, "pass@1")) is not None
            ]
            if rates:
                points.append((e["step"], math.fsum(rates) / len(rates)))
        label = members[0] if len(members) == 1 else f"{members[0]}–{members[-1]}"
        series.append(Series(label, tuple(points), f"o{i * _MAX_LEVELS // count}"))
    name = "Held-out" if split == "held_out" else "Out-of-distribution"
    return Chart(f"{name} pass@1 by difficulty", tuple(series), bounds=(0, 1), form=".2f")


def family_charts(entries: Entries) -> list[Chart]:
    """A chart a family where there are several: the pass rate in training, over windows of steps since a
    family has few groups in one, and the held-out pass@1."""
    families = sorted({name for e in entries for name in e.get("families") or {}})
    evaluated = {name for e in entries for name in get(e, "eval", "held_out", "by_family") or {}}
    if len(families) < 2:
        return []
    return [
        Chart(
            f"{name}: pass@1",
            (
                Series("training", tuple(_windows(entries, name)), "s4", thin=True),
                Series(
                    "held-out", tuple(curve(entries, "eval", "held_out", "by_family", name, "pass@1")), "s0"
                ),
            ),
            bounds=(0, 1),
            form=".2f",
        )
        for name in sorted(evaluated.union(families))
    ]


def _windows(entries: Entries, family: str) -> list[tuple[float, float]]:
    """(last step, pass rate over all rollouts) of a family in at most `_WINDOWS` equal windows of steps."""
    last = max(e["step"] for e in entries)
    count = min(_WINDOWS, last)
    passed: dict[int, float] = defaultdict(float)
    rollouts: dict[int, int] = defaultdict(int)
    for e in entries:
        found = get(e, "families", family)
        if e["step"] and found and found.get("pass_rate") is not None:
            window = (e["step"] - 1) * count // last
            passed[window] += found["pass_rate"] * found["rollouts"]
            rollouts[window] += found["rollouts"]
    return [(math.ceil((w + 1) * last / count), passed[w] / rollouts[w]) for w in sorted(rollouts)]


def curriculum_chart(entries: Entries) -> Chart:
    """How likely the curriculum is to take a task, by difficulty: the mean over the families."""
    cells = {name for e in entries for name in e.get("curriculum") or {}}
    levels = sorted({name.rpartition("/")[2] for name in cells}, key=float)[:_MAX_LEVELS]
    series = []
    for i, level in enumerate(levels):
        points = []
        for e in entries:
            taken = [
                c["probability"]
                for name, c in (e.get("curriculum") or {}).items()
                if name.rpartition("/")[2] == level
            ]
            if taken:
                points.append((e["step"], math.fsum(taken) / len(taken)))
        series.append(Series(level, tuple(points), f"o{i * _MAX_LEVELS // len(levels)}"))
    return Chart("Curriculum: probability of being taken", tuple(series), bounds=(0, 1), form=".2f")


def style_charts(entries: Entries) -> list[Chart]:
    """Shares of the styles, and how often each is right. `corrected` is right by definition: share only."""
    evaluated = [e for e in entries if get(e, "eval", "held_out", "by_style")]
    styles = {style for e in evaluated for style in e["eval"]["held_out"]["by_style"]}
    known = [s for s in _STYLE_COLOURS if s in styles]
    colours = {**_STYLE_COLOURS, **dict.fromkeys(styles - set(known), "s1")}
    ordered = known + sorted(styles - set(known))
    shares = [
        Series(
            style,
            tuple(
                (e["step"], get(e, "eval", "held_out", "by_style", style, "share") or 0.0) for e in evaluated
            ),
            colours[style],
        )
        for style in ordered
    ]
    rates = [
        Series(
            style, tuple(curve(evaluated, "eval", "held_out", "by_style", style, "pass@1")), colours[style]
        )
        for style in ordered
        if style != "corrected"
    ]
    return [
        Chart("Styles of held-out answers, share", tuple(shares), kind="shares", form=".0%"),
        Chart("Held-out pass@1 by style", tuple(rates), bounds=(0, 1), form=".2f"),
    ]


def _time_chart(entries: Entries) -> Chart:
    colours = ("s0", "s3", "s2", "s1", "s4")
    steps = [e for e in entries if e["step"] > 0 and get(e, "seconds", "total")]
    series = (
        Series(phase, tuple((e["step"], float(get(e, "seconds", phase) or 0.0)) for e in steps), colour)
        for phase, colour in zip(PHASES, colours, strict=True)
    )
    return Chart("Where a step's time goes", tuple(series), kind="shares", form=".2f", unit=" s")


def curve(entries: Entries, *path: str) -> list[tuple[float, float]]:
    """(step, value) wherever the nested metric at `path` has a value."""
    return [(e["step"], float(v)) for e in entries if (v := get(e, *path)) is not None]


def get(value: Any, *path: str) -> Any:
    """The nested value at `path`, None where anything on the way is missing."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
