"""What a person watching a run sees: a live panel on a terminal, one plain line a step anywhere else.

Everything shown comes from the step's metrics and one sample rollout; nothing is computed here but
sparklines, shares and the time left. Text sampled from a model is shown without its control characters, so
it cannot drive the terminal. Leaving the `with` block, also by an exception, restores the terminal.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from reasoner.metrics import PHASES
from reasoner.types import Rollout

log = logging.getLogger(__name__)

_PHASE_COLOURS = dict(zip(PHASES, ("cyan", "magenta", "green", "yellow", "bright_black"), strict=True))
_STATUS_COLOURS = {"correct": "bold green", "wrong": "bold red"}
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.:-=+*#"
_SPARK_WIDTH = 24
_SAMPLE_LINES = 8
_RECENT_STEPS = 20  # the time left is estimated from the mean of this many


class Display:
    """A run's display; use it as a context manager.

    `enabled=None` decides by whether standard output is a terminal. `total_steps` is where the bar ends.
    """

    def __init__(
        self,
        total_steps: int,
        enabled: bool | None = None,
        *,
        title: str = "reasoner",
        console: Console | None = None,
    ) -> None:
        self._console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._enabled = self._console.is_terminal if enabled is None else enabled
        self._total_steps = total_steps
        self._title = title
        self._started = time.monotonic()
        self._steps: list[Mapping[str, Any]] = []
        self._sample: tuple[Rollout, str] | None = None
        self._status = ""
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._enabled:
            self._live = Live(
                get_renderable=self._panel, console=self._console, refresh_per_second=2, transient=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def status(self, text: str) -> None:
        """Says what is going on between steps, such as `starting the vLLM server`."""
        if self._live is None:
            self._console.print(text, markup=False)
        elif text != self._status:
            self._status = text
            self._live.refresh()

    def message(self, text: str) -> None:
        """Prints a line that stays, above the live panel, and in logs/driver.log too."""
        log.warning("%s", text)
        self._console.print(text, markup=False)

    def update(
        self, metrics: Mapping[str, Any], sample: Rollout | None = None, prompt_text: str = ""
    ) -> None:
        """Shows a step: a line of metrics.jsonl, and one verified rollout with the text of its prompt."""
        self._steps.append(metrics)
        self._status = ""
        if sample is not None:
            self._sample = (sample, prompt_text)
        line = plain_line(metrics, self._total_steps, self._seconds_left())
        log.info("%s", line)
        if self._live is None:
            self._console.print(line, markup=False)
        else:
            self._live.refresh()

    def _seconds_left(self) -> float | None:
        recent = [t for m in self._steps[-_RECENT_STEPS:] if (t := _get(m, "seconds", "total")) is not None]
        if not recent:
            return None
        return (self._total_steps - self._steps[-1]["step"]) * math.fsum(recent) / len(recent)

    def _panel(self) -> RenderableType:
        rows: list[RenderableType] = [self._progress()]
        if self._steps:
            rows += [Text(), self._numbers(), Text(), self._times()]
        if self._sample is not None:
            rows += [Text(), self._sample_panel(*self._sample)]
        if self._status:
            rows.append(Text(self._status, "italic"))
        return Panel(Group(*rows), title=Text(self._title), title_align="left", border_style="bright_black")

    def _progress(self) -> Table:
        step = self._steps[-1]["step"] if self._steps else 0
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        bar = ProgressBar(self._total_steps, step, complete_style="green", finished_style="green")
        left = "" if (s := self._seconds_left()) is None else f", {duration(s)} left"
        elapsed = duration(time.monotonic() - self._started)
        grid.add_row(Text(f"step {step}/{self._total_steps}", "bold"), bar, Text(f"{elapsed} elapsed{left}"))
        return grid

    def _numbers(self) -> Table:
        now = self._steps[-1]
        table = Table.grid(padding=(0, 2))
        for label, path, form, bounds in (
            ("held-out pass@1", ("eval", "held_out", "pass@1"), "{:.3f}", (0.0, 1.0)),
            ("out of distribution", ("eval", "ood", "pass@1"), "{:.3f}", (0.0, 1.0)),
            ("training pass rate", ("pass_rate",), "{:.3f}", (0.0, 1.0)),
            ("response length", ("response_tokens_mean",), "{:.1f} tokens", None),
        ):
            lines = [m for m in self._steps if _get(m, *path) is not None]
            values = [_get(m, *path) for m in lines]
            if values:
                spark = self._encodable(sparkline(values, _SPARK_WIDTH, bounds))
                change = Text(f"from {form.format(values[0])}", "bright_black")
                value = Text(form.format(values[-1]), "bold").append(_unscored(lines[-1], path), "bold red")
                table.add_row(label, value, Text(spark, "cyan"), change)
        rest = [
            ("reward", _number(now, "reward_mean", form=".3f")),
            ("entropy", _number(now, "entropy", form=".3f")),
            ("grad norm", _number(now, "grad_norm", form=".2f")),
            ("staleness", _number(now, "staleness_mean", form=".1f")),
            ("truncated", _number(now, "truncated_rate", form=".1%")),
            ("self-corrected", _number(now, "self_corrected_rate", form=".1%")),
        ]
        line = Text("  ").join(Text(f"{name} ") + Text(value, "bold") for name, value in rest)
        outer = Table.grid()
        outer.add_row(table)
        outer.add_row(line)
        return outer

    def _times(self) -> Table:
        now = self._steps[-1]
        seconds = now.get("seconds") or {}
        spent = [(phase, float(seconds.get(phase) or 0.0)) for phase in PHASES]
        total = math.fsum(s for _, s in spent)
        bar, legend = Text(), Text()
        for (phase, own), cells in zip(spent, shares([s for _, s in spent], 40), strict=True):
            bar.append(self._encodable("█") * cells, _PHASE_COLOURS[phase])
            share = own / total if total else 0.0
            legend.append(f"{phase} {share:.0%}  ", _PHASE_COLOURS[phase])
        speeds = (
            f"{seconds.get('total') or total:.2f} s a step, sampled "
            f"{compact(now.get('sampler_tokens_per_s'))} tokens/s, learned "
            f"{compact(now.get('learner_tokens_per_s'))} tokens/s"
        )
        grid = Table.grid(padding=(0, 2))
        grid.add_row(bar, legend)
        outer = Table.grid()
        outer.add_row(Text(speeds))
        outer.add_row(grid)
        return outer

    def _sample_panel(self, rollout: Rollout, prompt_text: str) -> Panel:
        prompt = self._encodable(excerpt(printable(prompt_text), _SAMPLE_LINES // 2))
        completion = self._encodable(excerpt(printable(rollout.completion), _SAMPLE_LINES))
        title = Text(f"one rollout, {rollout.num_action_tokens} tokens")
        if rollout.verdict is not None:
            status = rollout.verdict.status
            expected = " or ".join(rollout.task.references)
            title.append(", ").append(status, _STATUS_COLOURS.get(status, "bold yellow"))
            title.append(self._encodable(printable(f" (expected {expected})")))
        body = Text.assemble((prompt, "bright_black"), completion)
        return Panel(body, title=title, title_align="left", border_style="bright_black")

    def _encodable(self, text: str) -> str:
        encoding = self._console.encoding
        if not encoding.lower().startswith("utf"):
            text = text.translate(str.maketrans(_BLOCKS, _ASCII_BLOCKS))
        return text.encode(encoding, "replace").decode(encoding)


def plain_line(metrics: Mapping[str, Any], total_steps: int, seconds_left: float | None = None) -> str:
    """One step as a line of text for logs; values that are missing are left out."""
    parts = [f"step {metrics['step']}/{total_steps}"]
    for label, path, form in (
        ("reward", ("reward_mean",), ".3f"),
        ("pass", ("pass_rate",), ".3f"),
        ("length", ("response_tokens_mean",), ".1f"),
        ("held-out", ("eval", "held_out", "pass@1"), ".3f"),
        ("ood", ("eval", "ood", "pass@1"), ".3f"),
        ("entropy", ("entropy",), ".3f"),
        ("grad", ("grad_norm",), ".2f"),
        ("tokens/s", ("sampler_tokens_per_s",), ".0f"),
    ):
        if (value := _get(metrics, *path)) is not None:
            parts.append(f"{label} {value:{form}}{_unscored(metrics, path)}")
    seconds = metrics.get("seconds") or {}
    if seconds.get("total") is not None:
        detail = " ".join(f"{p} {seconds[p]:.2f}" for p in PHASES if seconds.get(p))
        parts.append(f"{seconds['total']:.2f} s ({detail})")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def _unscored(metrics: Mapping[str, Any], path: Sequence[str]) -> str:
    """What to say beside a pass rate that leaves rollouts out."""
    if path[-1] not in ("pass_rate", "pass@1"):
        return ""
    share = _get(metrics, *path[:-1], "masked_rate")
    return f" ({'<1%' if share < 0.01 else f'{share:.0%}'} unscored)" if share else ""


def sparkline(values: Sequence[float], width: int, bounds: tuple[float, float] | None = None) -> str:
    """At most `width` block characters, each the mean of its share of `values`; `bounds` is the scale
    (default: the smallest and largest mean). Non-finite values are left out."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite or width < 1:
        return ""
    cells = min(width, len(finite))
    edges = [i * len(finite) // cells for i in range(cells + 1)]
    means = [math.fsum(finite[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = bounds or (min(means), max(means))
    if high <= low:
        return _BLOCKS[len(_BLOCKS) // 2] * cells
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[min(top, max(0, round((m - low) / (high - low) * top)))] for m in means)


def shares(values: Sequence[float], cells: int) -> list[int]:
    """`cells` divided in proportion to `values` (largest remainder), all 0 when they sum to 0."""
    total = math.fsum(values)
    if total <= 0:
        return [0] * len(values)
    exact = [value / total * cells for value in values]
    whole = [math.floor(e) for e in exact]
    by_remainder = sorted(range(len(values)), key=lambda i: exact[i] - whole[i], reverse=True)
    for i in by_remainder[: cells - sum(whole)]:
        whole[i] += 1
    return whole


def printable(text: str) -> str:
    """`text` without control characters (newlines stay): they become `·`, tabs a space."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "·" for c in text)


def excerpt(text: str, lines: int) -> str:
    """At most about `lines` lines of 100 characters: the beginning and the end, and what is left out."""
    limit = 100 * lines
    if len(text) > limit:
        text = f"{text[: limit // 2]} [{len(text) - limit} characters] {text[-limit // 2 :]}"
    parts = text.split("\n")
    if len(parts) > lines:
        half = lines // 2
        parts = [*parts[:half], f"[{len(parts) - 2 * half} lines]", *parts[-half:]]
    return "\n".join(parts)


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def compact(value: float | None) -> str:
    """A rate in at most five characters, such as `812`, `5.1k`, `2.3M`."""
    if value is None:
        return "-"
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{suffix}"
    return f"{value:.0f}"


def _get(metrics: Mapping[str, Any], *path: str) -> Any:
    value: Any = metrics
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _number(metrics: Mapping[str, Any], *path: str, form: str) -> str:
    value = _get(metrics, *path)
    return "-" if value is None else format(value, form)
