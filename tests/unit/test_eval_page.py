import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasoner.errors import ReasonerError
from reasoner.eval_charts import Line, Plot, Point, accuracy_plot, render, short
from reasoner.eval_page import write_eval_page
from reasoner.eval_samples import calibration, explorer, length_histogram, read_samples
from reasoner.eval_sections import spread_targets
from reasoner.exchange import CheckpointCurves, exchange_rate
from reasoner.plots import scaling_figure, write_plots
from reasoner.scaling import paired_comparison, scaling_table


def row(task="t1", sample=0, completion="\\boxed{4}", key="4", status=None, **fields):
    status = status or ("correct" if key == "4" else "wrong" if key else "unparsed")
    return {
        "split": "held_out",
        "task_id": task,
        "prompt": "What is 2+2?",
        "reference": "4",
        "sample": sample,
        "completion": completion,
        "status": status,
        "answer_key": key,
        "tokens": len(completion),
        "mean_logprob": -0.5,
        **fields,
    }


ROWS = [
    row(sample=0),
    row(sample=1),
    row(sample=2, completion="</script><b>5", key="5"),
    row(sample=3, completion="I do not know", key=None),
    row("t2", 0, key="5", completion="2+2=5"),
    row("t2", 1, key="5", completion="2+2=5"),
    row("t2", 2, key="4"),
    row("t2", 3, key=None, status="error"),
    row("t2", 0, key="4", kind="cut", amount=8, completion="cut short \\boxed{4}"),
]


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.parquet"
    pq.write_table(pa.Table.from_pylist([{"kind": "chain", "amount": 0} | r for r in ROWS]), path)
    return path


@pytest.fixture
def result(samples):
    problems = [p.samples for p in read_samples(samples)["held_out"]]
    base = CheckpointCurves("base", 0, 10, {1: 0.2, 4: 0.4}, {1: 0.2, 4: 0.6})
    trained = CheckpointCurves("trained", 100, 10, {1: 0.5, 4: 0.7}, {1: 0.5, 4: 0.8})
    split = scaling_table(problems, [1, 2, 3], seed=0) | {
        "problems": 2,
        "samples": 4,
        "response_tokens_mean": 9.0,
        "flops_per_sample": 1e6,
        "flops_per_correct": 2e6,
        "unparsed_rate": 0.125,
        "self_correction": {"wrong_to_right_rate": 0.5},
        "best_of_k_scorer": "mean_logprob",
        "by_difficulty": {"1": {"pass@1": 0.5, "response_tokens_mean": 9.0}, "2": {"pass@1": None}},
    }
    point = {"kind": "cut", "budget": 8, "times": None, "tokens_mean": 8.0, "accuracy": 0.5}
    budget = [
        point | {name: split[name] for name in ("pass@k", "maj@k", "ci95")},
        point | {"kind": "full", "budget": None, "tokens_mean": 9.0, "pass@k": None, "maj@k": None},
    ]
    return {
        "model": "a <model>",
        "seed": 0,
        "tasks": "arithmetic",
        "sampling": {"temperature": 1.0},
        "splits": {"held_out": split},
        "budgets": {"schema": 1, "splits": {"held_out": {"points": budget, "s1": {"control": 1.0}}}},
        "exchange_rate": exchange_rate([base, trained]),
        "comparison": {
            "model": "the other",
            "splits": {"held_out": {"pass@1": paired_comparison(problems, problems, 1, 0)}},
        },
        "generalisation": {
            "accuracy": {"held_out": 0.5, "train_seen": 0.625, "train_fresh": None},
            "memorisation": {"difference": 0.125, "ci95": [0.0625, 0.1875]},
            "forgetting": {"bits_per_byte": {"base": 0.75, "evaluated": 1.25}},
        },
    }


class Page(HTMLParser):
    """Checks that elements nest, and collects what the tests ask for."""

    VOID = {"meta", "input", "link", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.points, self.outside, self.text = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.outside += [v for k, v in attrs.items() if k in ("src", "href") or "http" in (v or "")]
        if "data-action" in attrs:
            self.points.append((json.loads(attrs["data-action"]), attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def written(tmp_path, result, samples):
    return write_eval_page(result, samples, tmp_path / "eval.html").read_text()


def test_page_is_one_self_contained_file_with_every_part(tmp_path, result, samples):
    text = written(tmp_path, result, samples)
    page = Page(text)
    assert not page.outside and "@import" not in text and "url(" not in text
    words = " ".join(" ".join(page.text).split())
    parts = ("a <model>", "More samples: held-out", "Longer thinking", "Exchange rate", "the only way")
    for part in (
        *parts,
        "Votes and lengths",
        "Costs",
        "By difficulty",
        "first answer wrong",
        "Against the other",
        "Problems and chains of thought",
    ):
        assert part in words, part


def test_points_name_what_the_list_of_problems_knows(tmp_path, result, samples):
    text = written(tmp_path, result, samples)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    points = Page(text).points
    assert {action["metric"] for action, _ in points} >= {"pass@1", "maj@2", "weighted_maj@1"}
    for action, attributes in points:
        problems = data["splits"][action["split"]]
        assert any(action["metric"] in p["values"] for p in problems), action
        assert attributes["tabindex"] == "0" and attributes["role"] == "button"


def test_oracle_and_deployable_curves_differ_in_more_than_colour(tmp_path, result, samples):
    figure = re.search(r"<figure.*?</figure>", written(tmp_path, result, samples), re.S).group(0)
    drawn = re.findall(r'<polyline class="line (\w+) l(s\d)"', figure)
    assert ("oracle", "s1") in drawn and ("deployable", "s0") in drawn
    oracle = re.search(r"<title>pass@k \(oracle\).*?</g>", figure, re.S).group(0)
    assert "hollow" in oracle
    assert "hollow" not in re.search(r"<title>majority.*?</g>", figure, re.S).group(0)


def test_samples_cannot_break_out_of_the_page(tmp_path, result, samples):
    text = written(tmp_path, result, samples)
    assert "</script><b>5" not in text
    assert text.count("<script") == text.count("</script>") == 2


def test_generalisation_is_shown(tmp_path, result):
    text = " ".join(Page(written(tmp_path, result, None)).text)
    for shown in (
        "training problems",
        "0.625",
        "0.125 [0.062, 0.188]",
        "bits a byte, evaluated model",
        "1.250",
    ):
        assert shown in text
    forgotten = result["generalisation"] | {"forgetting": None}
    assert "bits a byte, base" not in written(tmp_path, result | {"generalisation": forgotten}, None)


OPTIONAL = ["budgets", "exchange_rate", "sampling", "seed", "tasks", "comparison", "generalisation"]


@pytest.mark.parametrize("missing", OPTIONAL)
def test_missing_pieces_are_left_out(tmp_path, result, missing):
    Page(written(tmp_path, result | {missing: None}, None))


def test_null_curves_and_an_empty_result(tmp_path, result):
    split = dict.fromkeys(result["splits"]["held_out"]) | {"problems": 1, "samples": 1, "pass@k": {"1": 0.0}}
    assert "pass@k (oracle)" in written(tmp_path, result | {"splits": {"mine": split}}, None)
    Page(written(tmp_path, {}, None))


def test_a_file_that_holds_no_samples(tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"step": [1]}), path)
    with pytest.raises(ReasonerError, match="no column split, task_id"):
        write_eval_page({}, path, tmp_path / "eval.html")
    path.write_bytes(b"not parquet")
    with pytest.raises(ReasonerError, match="cannot read"):
        read_samples(path)


def test_calibration_by_hand(samples):
    # t1: 2 of 4 votes for 4, right; t2: 2 of 3 scored votes for 5, wrong
    bins, error = calibration(read_samples(samples)["held_out"])
    assert [(b.share, b.right, b.problems) for b in bins] == [(0.5, 1.0, 1), (pytest.approx(2 / 3), 0.0, 1)]
    assert error == pytest.approx((0.5 + 2 / 3) / 2)
    assert calibration([]) == ([], None)


def test_lengths_count_scored_chains_once(samples):
    edges, shares = length_histogram(read_samples(samples)["held_out"])
    assert sum(h.sum() for h in shares.values()) == pytest.approx(1)
    assert shares["right"].sum() == pytest.approx(3 / 7)
    assert edges[0] == 5 and edges[-1] > 13


def test_explorer_merges_equal_samples_and_keeps_cut_ones_apart(samples):
    content = explorer(read_samples(samples), seed=0)
    first, second = content["splits"]["held_out"]
    assert (first["n"], first["c"], first["values"]["pass@4"]) == (4, 2, 1.0)
    assert [(s["count"], s["first"]) for s in first["samples"]] == [(2, 0), (1, 2), (1, 3)]
    assert first["votes"][0] == ["4", 2, 1.0]
    assert (second["n"], second["c"]) == (3, 1)
    assert [(s["point"], s["count"]) for s in second["samples"] if s["point"]] == [("cut 8", 1)]
    assert content["left_out"] == 0


def test_explorer_keeps_the_first_samples_when_they_are_too_many(samples, monkeypatch):
    monkeypatch.setattr("reasoner.eval_samples.PAGE_CHARACTERS", 40)
    content = explorer(read_samples(samples), seed=0)
    kept = sum(s["count"] for p in content["splits"]["held_out"] for s in p["samples"])
    # 40 of 92 characters: 1 of the 4 samples of t1, 2 of the 5 of t2
    assert (kept, content["left_out"]) == (3, 6)


def test_a_chart_without_values_is_empty_and_odd_values_are_left_out():
    def drawn(*points, **options):
        return str(render(Plot("t", (Line("l", points, "s0"),), "x", "y", **options)))

    assert drawn() == drawn(Point(math.nan, 1)) == drawn(Point(0, 1), log_x=True) == ""
    assert drawn(Point(1, 0.5), Point(0, 1), log_x=True).count('<circle class="halo"') == 1
    assert "nan" not in drawn(Point(5, 3), log_x=True, log_y=True)


@pytest.mark.parametrize(
    ("values", "shown"),
    [((0.2, 0.9), (0, 1)), ((0.95, 0.99), (0.9, 1)), ((0.0, 0.07), (0, 0.1)), ((), (0, 1))],
)
def test_an_accuracy_axis_is_cut_only_where_nothing_is_and_says_so(values, shown):
    points = tuple(Point(i + 1, v) for i, v in enumerate(values))
    plot = accuracy_plot("t", (Line("l", points, "s0"),), "x")
    assert plot.y_range == pytest.approx(shown)
    assert bool(plot.caption) == (shown != (0, 1))


def test_short_numbers():
    shown = {0: "0", 0.25: "0.25", 320: "320", 1234: "1234", 12800: "12.8k", 3.1e12: "3.1e12", 2e9: "2e9"}
    assert {value: short(value) for value in shown} == shown
    assert short(np.float64(9e13)) == "9e13"


def test_plots_are_written_for_what_there_is(tmp_path, result):
    written = write_plots(result, tmp_path / "plots")
    names = {p.name for p in written}
    assert names == {
        f"{name}.{form}"
        for name in ("scaling_held_out", "budgets_held_out", "exchange_rate")
        for form in ("png", "svg")
    }
    assert (tmp_path / "plots" / "exchange_rate.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plots" / "scaling_held_out.svg").read_text()
    assert write_plots({}, tmp_path / "none") == []


def test_plots_draw_the_oracle_dashed_and_hollow(result):
    axis = scaling_figure("held_out", result["splits"]["held_out"]).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert lines["pass@k (oracle)"].get_linestyle() == "--"
    assert lines["pass@k (oracle)"].get_markerfacecolor() == "none"
    assert lines["majority (maj@k)"].get_linestyle() == "-"
    assert list(lines["majority (maj@k)"].get_xdata()) == [1, 2, 3]


def test_spread_targets_keeps_the_ends_and_skips_what_nobody_reaches():
    def target(accuracy, reached=True):
        return {"accuracy": accuracy, "checkpoints": [{"flops_per_query": 1.0 if reached else None}]}

    targets = [target(a / 10) for a in range(1, 9)] + [target(0.9, reached=False)]
    assert [t["accuracy"] for t in spread_targets(targets, 3)] == [0.1, 0.5, 0.8]
    assert spread_targets([targets[-1]]) == []
