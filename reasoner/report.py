"""`report.html` of a run: what it reached, how, and what the model wrote; one file, no network, no script.

Written from metrics.jsonl, config.toml and the Parquet rollouts alone, so it can be made at any moment of a
run, again later, or on another machine. Left out: single rollouts beyond a few samples (`reasoner view`).
The samples are not chosen by hand or by quality: each is the first of its kind in its step.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reasoner.charts import STYLE, picture
from reasoner.curves import (
    Entries,
    curve,
    difficulty_chart,
    get,
    length_chart,
    pass_chart,
    sections,
    style_charts,
)
from reasoner.display import duration
from reasoner.durable import write_atomically
from reasoner.errors import UsageError
from reasoner.metrics import read_metrics
from reasoner.rollout_files import read_table, step_paths, task_from_json
from reasoner.self_correction import detect, self_corrected
from reasoner.types import Task, Verdict

_MAX_CHARACTERS = 6000  # of one sample


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` and returns its path, also before the first step is finished.

    UsageError when `run_dir` is not a run."""
    run_dir = Path(run_dir)
    entries = _entries(run_dir)
    config = _config(run_dir)
    environment = Environment(
        loader=PackageLoader("reasoner", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        name=run_dir.resolve().name,
        state=_state(entries, config),
        headline=_headline(entries),
        sections=[(title, [Markup(svg) for svg in svgs]) for title, svgs in sections(entries)],
        samples=_samples(run_dir),
        config=list(_flat(config)),
        chart_style=Markup(STYLE),
    )
    path = run_dir / "report.html"
    write_atomically(path, page.encode())
    return path


def write_picture(run_dir: Path, out_svg: Path) -> Path:
    """Writes the main curves of a run as one SVG file, for a README, and returns its path."""
    entries = _entries(Path(run_dir))
    charts = [
        pass_chart(entries),
        length_chart(entries),
        difficulty_chart(entries, "held_out"),
        *style_charts(entries)[:1],
    ]
    title = " · ".join(f"{card.label} {card.text}" for card in _headline(entries)[:3])
    write_atomically(Path(out_svg), picture([c for c in charts if c.series], title).encode())
    return Path(out_svg)


def _entries(run_dir: Path) -> Entries:
    if not (run_dir / "metrics.jsonl").exists() and not (run_dir / "config.toml").exists():
        raise UsageError(f"{run_dir} is not a run: it has neither config.toml nor metrics.jsonl")
    return read_metrics(run_dir)


def _config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.toml"
    return tomllib.loads(path.read_text()) if path.exists() else {}


def _state(entries: Entries, config: Mapping[str, Any]) -> str:
    if not entries:
        return "no finished step yet"
    step, total = entries[-1]["step"], config.get("steps")
    return f"step {step}" if total is None else f"step {step} of {total}"


# ---------------------------------------------------------------------- numbers at the top


@dataclass(frozen=True)
class Card:
    """One headline number: where it began, where it is, and how sure that is."""

    label: str
    first: str
    last: str
    detail: str = ""

    @property
    def text(self) -> str:
        return f"{self.first} → {self.last}" if self.first else self.last


def _headline(entries: Entries) -> list[Card]:
    if not entries:
        return []
    cards = []
    for split, label in (("held_out", "held-out pass@1"), ("ood", "out of distribution")):
        if values := curve(entries, "eval", split, "pass@1"):
            cards.append(
                Card(label, f"{values[0][1]:.2f}", f"{values[-1][1]:.2f}", _certainty(entries, split, values))
            )
    if not cards and (values := curve(entries, "pass_rate")):
        cards.append(Card("training pass rate", f"{values[0][1]:.2f}", f"{values[-1][1]:.2f}"))
    for label, key, form, unit in (
        ("response length", "response_tokens_mean", ".1f", "tokens "),
        ("self-corrected", "self_corrected_rate", ".1%", ""),
    ):
        held_out, training = curve(entries, "eval", "held_out", key), curve(entries, key)
        if values := held_out or training:
            where = f"{unit}on the held-out problems" if held_out else f"{unit}in training"
            cards.append(Card(label, f"{values[0][1]:{form}}", f"{values[-1][1]:{form}}", where))
    steps = sum(1 for e in entries if e["step"] > 0)
    seconds = math.fsum(v for step, v in curve(entries, "seconds", "total") if step > 0)
    elapsed = entries[-1].get("elapsed_s") or seconds
    plural = "" if steps == 1 else "s"
    cards.append(Card("time", "", duration(elapsed), f"{duration(seconds)} in {steps} step{plural}"))
    return cards


def _certainty(entries: Entries, split: str, values: Sequence[tuple[float, float]]) -> str:
    """Half the 95 % interval, over problems: an upper bound when there are several samples a problem."""
    last = next(e for e in reversed(entries) if get(e, "eval", split, "pass@1") is not None)["eval"][split]
    problems, p = last.get("problems"), values[-1][1]
    parts = []
    if problems:
        margin = 1.96 * math.sqrt(p * (1 - p) / problems)
        parts.append(f"± {margin:.2f}, {problems} problems × {last.get('samples', 1)}")
    best_step, best = max(values, key=lambda v: v[1])
    if best > p:
        parts.append(f"best {best:.2f} at step {best_step}")
    return "; ".join(parts)


# ---------------------------------------------------------------------- chains of thought


@dataclass(frozen=True)
class Sample:
    """A rollout as the page shows it. `parts` are pieces of the completion and whether it took them back."""

    kind: str
    count: int  # rollouts of this kind in the step
    prompt: str
    parts: tuple[tuple[str, bool], ...]
    status: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class StepSamples:
    step: int
    rollouts: int
    samples: tuple[Sample, ...]


def _samples(run_dir: Path) -> list[StepSamples]:
    """Samples of the first, the middle and the last step whose rollouts are compacted."""
    paths = list(step_paths(run_dir).items())
    chosen = sorted({0, len(paths) // 2, len(paths) - 1}) if paths else []
    return [_step_samples(*paths[i]) for i in chosen]


def _step_samples(step: int, path: Path) -> StepSamples:
    columns = (
        "group_index",
        "rollout",
        "task",
        "completion",
        "status",
        "reward",
        "extracted",
        "detail",
        "truncated",
        "advantage",
        "action_mask",
    )
    rows = read_table(path, columns).to_pylist()
    kinds: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
        ("right", lambda row: row["status"] == "correct" and not row["self_corrected"]),
        ("right, after correcting itself", lambda row: row["self_corrected"]),
        ("not right", lambda row: row["status"] != "correct"),
    )
    for row in rows:
        verdict = Verdict("correct", row["reward"]) if row["status"] == "correct" else None
        row["self_corrected"] = self_corrected(row["completion"], verdict)
    samples = []
    for kind, belongs in kinds:
        members = [row for row in rows if belongs(row)]
        if members:
            samples.append(_sample(kind, len(members), members[0]))
    return StepSamples(step, len(rows), tuple(samples))


def _sample(kind: str, count: int, row: dict[str, Any]) -> Sample:
    task = task_from_json(row["task"])
    facts = [f"expected {' or '.join(task.references)}", f"{sum(row['action_mask'])} tokens"]
    facts += [f"read as {row['extracted']}"] if row["extracted"] is not None else []
    facts += [f"reward {row['reward']:g}"] if row["reward"] is not None else ["left out"]
    facts += [f"advantage {row['advantage']:+.2f}"] if row["advantage"] is not None else []
    facts += ["cut off"] if row["truncated"] else []
    facts += (
        [row["detail"]] if row["detail"] and row["status"] in ("error", "timeout", "bad_reference") else []
    )
    return Sample(
        kind,
        count,
        _prompt(task),
        tuple(_parts(row["completion"])),
        row["status"] or "unverified",
        tuple(facts),
    )


def _prompt(task: Task) -> str:
    if isinstance(task.prompt, str):
        return task.prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in task.prompt)


def _parts(completion: str) -> Iterator[tuple[str, bool]]:
    """The completion cut at the claims it took back; a very long one loses its middle."""
    position = 0
    if len(completion) > _MAX_CHARACTERS:
        half, left_out = _MAX_CHARACTERS // 2, len(completion) - _MAX_CHARACTERS
        completion = f"{completion[:half]}\n[… {left_out} characters …]\n{completion[-half:]}"
    for claim in detect(completion).retracted:
        if claim.start >= position:
            yield completion[position : claim.start], False
            yield claim.text, True
            position = claim.start + len(claim.text)
    yield completion[position:], False


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
