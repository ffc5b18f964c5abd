"""The HTML page of an evaluation: one file, no network, its script inline; readable without the script too.

Curves come from eval.json alone; calibration, lengths and the chains of thought behind a point need the
Parquet samples. What is missing or null is left out. A point of a curve can be chosen (mouse or keyboard):
the list of problems then shows each problem's own value at that point, and its samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reasoner.charts import STYLE as COLOURS
from reasoner.curves import get
from reasoner.durable import write_atomically
from reasoner.eval_charts import METRICS, STYLE, Line, Plot, Point, accuracy_plot, render, short
from reasoner.eval_samples import explorer, read_samples
from reasoner.eval_sections import Table, budgets, exchange, sample_figures

_SPLITS = {
    "held_out": "held-out",
    "ood": "out of distribution",
    "train_seen": "training problems",
    "train_fresh": "fresh training problems",
}


def write_eval_page(result: Mapping[str, Any], samples_parquet: Path | None, out: Path) -> Path:
    """Writes the page of `result` (the contents of eval.json) to `out` and returns its path.

    Raises ReasonerError for a Parquet file that cannot be read or a page that cannot be written."""
    problems = read_samples(Path(samples_parquet)) if samples_parquet is not None else {}
    environment = Environment(
        loader=PackageLoader("reasoner", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    splits = result.get("splits") or {}
    ks = {name: _ks(split) for name, split in splits.items()}
    content = explorer(problems, int(result.get("seed") or 0), ks) if problems else None
    page = environment.get_template("eval.html").render(
        model=result.get("model") or "evaluation",
        facts=_facts(result),
        cards=[card for name, split in splits.items() for card in _cards(name, split)],
        splits=[(_name(name), _figures(name, split), _table(split)) for name, split in splits.items()],
        costs=_costs(splits),
        kinds=[
            *_kinds(splits),
            *_comparison(result.get("comparison")),
            *_generalisation(result.get("generalisation")),
        ],
        budgets=budgets(result, _name),
        exchange=exchange(result.get("exchange_rate")),
        samples=[(_name(name), sample_figures(ps)) for name, ps in problems.items()],
        explorer=None if content is None else Markup(_script_json(content)),
        left_out=0 if content is None else content["left_out"],
        split_names=[(name, _name(name)) for name in problems],
        style=Markup(COLOURS + STYLE),
    )
    write_atomically(Path(out), page.encode())
    return Path(out)


def _script_json(content: Any) -> str:
    """JSON that can stand inside a `<script>` element whatever the samples say."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _name(split: str) -> str:
    return _SPLITS.get(split, split)


def _facts(result: Mapping[str, Any]) -> str:
    sampling = result.get("sampling") or {}
    parts = [f"tasks {result['tasks']}"] if result.get("tasks") else []
    parts += [f"verifier {result['verifier']}"] if result.get("verifier") else []
    parts += [f"{key} {value}" for key, value in sampling.items() if value is not None]
    parts += [f"seed {result['seed']}"] if result.get("seed") is not None else []
    return " · ".join(str(part).replace("_", " ") for part in parts)


@dataclass(frozen=True)
class Card:
    label: str
    first: str
    last: str
    detail: str


def _cards(name: str, split: Mapping[str, Any]) -> Iterator[Card]:
    """One sample against the most samples, deployable and oracle."""
    size = f"{split.get('problems', '?')} problems × {split.get('samples', '?')} samples"
    for key, interval, label, _, oracle in METRICS:
        values = split.get(key)
        if not values or key not in ("pass@k", "maj@k"):
            continue
        k = max(values, key=int)
        low_high = get(split, "ci95", interval.format(k))
        detail = f"95 % [{low_high[0]:.2f}, {low_high[1]:.2f}]; {size}" if low_high else size
        one, kind = min(values, key=int), "oracle" if oracle else "deployable"
        label = f"{_name(name)}, {key[:-1]}{one} → {key[:-1]}{k} ({kind})"
        yield Card(label, f"{values[one]:.2f}", f"{values[k]:.2f}", detail)


def _kinds(splits: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Table]]:
    """Accuracy of one sample by difficulty and by family, where a split has several of them."""
    found = []
    for key, title in (("by_difficulty", "difficulty"), ("by_family", "family")):
        rows = [
            (
                level,
                _name(name),
                _value(rates.get("pass@1"), None),
                _or_dash(rates.get("response_tokens_mean")),
            )
            for name, split in splits.items()
            for level, rates in (split.get(key) or {}).items()
        ]
        if len({level for level, *_ in rows}) > 1:
            found.append((f"By {title}", Table((title, "split", "pass@1", "tokens"), tuple(rows))))
    return found


def _comparison(comparison: Mapping[str, Any] | None) -> list[tuple[str, Table]]:
    """This model minus another one on the same problems."""
    rows = []
    for name, metrics in (get(comparison, "splits") or {}).items():
        families = get(comparison, "by_family", name) or {}
        for label, found in [*metrics.items(), *((f"pass@1, {f}", pair) for f, pair in families.items())]:
            low, high = found["ci95"]
            difference = f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            rows.append((label, _name(name), difference, f"{found['p_value']:.2g}"))
    if comparison is None or not rows:
        return []
    head = ("metric", "split", "difference", "p")
    title = f"Against {comparison.get('model') or comparison.get('other')}"
    return [(title, Table(head, tuple(rows), "Paired, on the problems that both have."))]


def _generalisation(found: Mapping[str, Any] | None) -> list[tuple[str, Table]]:
    """Every split side by side, what was memorised, what was forgotten."""
    if not found:
        return []
    rows = [(f"accuracy, {_name(name)}", _value(value, None)) for name, value in found["accuracy"].items()]
    seen = found["memorisation"]
    rows.append(("memorisation: seen minus fresh", _value(seen["difference"], seen["ci95"])))
    for which, bits in (get(found, "forgetting", "bits_per_byte") or {}).items():
        rows.append((f"bits a byte, {which} model", f"{bits:.3f}"))
    note = "Bits a byte are those of the pre-training text: more of them is forgetting."
    return [("Generalisation, memorisation, forgetting", Table(("", "value"), tuple(rows), note))]


def _or_dash(value: float | None) -> str:
    return "–" if value is None else short(value)


# ---------------------------------------------------------------------- accuracy against samples and costs


def _ks(split: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers of samples that a split's curves have, in order."""
    return tuple(sorted({int(k) for key, *_ in METRICS for k in split.get(key) or {}}))


def _lines(split: Mapping[str, Any], each: float, act: Callable[[str], str]) -> Iterator[Line]:
    """The curves of a split over k·`each`."""
    for key, interval, label, colour, oracle in METRICS:
        points = []
        for k, value in (split.get(key) or {}).items():
            low, high = get(split, "ci95", interval.format(k)) or (None, None)
            note = f"{k} samples"
            points.append(Point(int(k) * each, value, low, high, note, act(interval.format(k))))
        if points:
            points.sort(key=lambda p: p.x)
            if key == "best_of_k" and split.get("best_of_k_scorer"):
                label += f" by {split['best_of_k_scorer'].replace('_', ' ')}"
            yield Line(label, tuple(points), colour, "oracle" if oracle else "deployable")


def _action(split: str) -> Callable[[str], str]:
    return lambda metric: json.dumps({"split": split, "metric": metric})


def _figures(name: str, split: Mapping[str, Any]) -> list[Markup]:
    """Accuracy against samples, tokens and FLOPs; each cost is the mean of one sample times k."""
    act = _action(name)
    ks = _ks(split)
    plots = [
        accuracy_plot(
            "Accuracy against samples",
            tuple(_lines(split, 1, act)),
            "samples a problem, k",
            log_x=True,
            x_ticks=ks,
        )
    ]
    for cost, title, label in (
        ("response_tokens_mean", "Accuracy against tokens", "tokens generated a problem"),
        ("flops_per_sample", "Accuracy against FLOPs", "inference FLOPs a problem"),
    ):
        if split.get(cost):
            lines = tuple(_lines(split, float(split[cost]), act))
            plots.append(accuracy_plot(title, lines, label, log_x=True))
    plots.append(_consistency(split, ks))
    return [figure for plot in plots if (figure := render(plot))]


def _consistency(split: Mapping[str, Any], ks: tuple[int, ...]) -> Plot:
    lines = []
    thresholds = sorted((split.get("g_pass@k") or {}).items())
    for (tau, values), colour in zip(thresholds, ("s1", "s3", "s2"), strict=False):
        points = []
        for k, value in values.items():
            low, high = get(split, "ci95", f"g_pass[{tau}]@{k}") or (None, None)
            points.append(Point(float(k), value, low, high, f"{k} samples"))
        lines.append(Line(f"at least {float(tau):.0%} right", tuple(points), colour, "oracle"))
    return accuracy_plot(
        "Consistency: G-pass@k (oracle)",
        tuple(lines),
        "samples a problem, k",
        "share of problems",
        log_x=True,
        x_ticks=ks,
    )


def _table(split: Mapping[str, Any]) -> Table | None:
    """Every number of the curves, with its interval: what the charts show, for those who cannot see them."""
    shown = [m for m in METRICS if split.get(m[0])]
    if not shown:
        return None
    rows = []
    for k in _ks(split):
        cells = [str(k)]
        for key, interval, *_ in shown:
            value, ends = get(split, key, str(k)), get(split, "ci95", interval.format(k))
            cells.append(_value(value, ends))
        rows.append(tuple(cells))
    worst = max((e for e in (split.get("maj_error") or {}).values()), default=0.0)
    note = "Majority votes are exact expectations over all subsets."
    if worst:
        note = f"Majority votes are partly Monte Carlo: standard error at most {worst:.1g}."
    return Table(("k", *(label for _, _, label, _, _ in shown)), tuple(rows), note)


def _value(value: float | None, ends: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _costs(splits: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """What a sample and a right answer cost, and what became of the samples, a column a split."""
    wanted: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("response_tokens_mean", "tokens a sample", short),
        ("flops_per_sample", "FLOPs a sample", short),
        ("flops_per_correct", "FLOPs a right answer", short),
        ("unparsed_rate", "without an answer", "{:.1%}".format),
        ("truncated_rate", "cut off by the token limit", "{:.1%}".format),
        ("masked_rate", "not scored", "{:.1%}".format),
        ("self_corrected_rate", "right after correcting itself", "{:.1%}".format),
        ("self_correction/wrong_to_right_rate", "first answer wrong, last one right", "{:.1%}".format),
        ("self_correction/right_to_wrong_rate", "first answer right, last one wrong", "{:.1%}".format),
    )
    rows = []
    for path, label, form in wanted:
        values = [get(split, *path.split("/")) for split in splits.values()]
        if any(value is not None for value in values):
            rows.append((label, *("–" if value is None else form(value) for value in values)))
    return Table(("", *map(_name, splits)), tuple(rows)) if rows else None
