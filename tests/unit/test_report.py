import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from reasoner.charts import Chart, Series, buckets, picture, render, ticks
from reasoner.curves import difficulty_chart, family_charts, pass_chart, sections, style_charts
from reasoner.errors import UsageError
from reasoner.journal import Journal, Use
from reasoner.metrics import MetricsWriter, plain, step_metrics
from reasoner.report import write_picture, write_report
from reasoner.types import Group, Rollout, SamplingParams, Task, Verdict

SECONDS = {"rollout": 2.0, "verify": 0.0, "learn": 1.0, "sync": 0.5, "wait": 0.5, "total": 4.0}
RIGHT = r"87+74=161;161-90=71;\boxed{71}"
CORRECTED = r"87+74=151;no,87+74=161;161-90=71;\boxed{71}"
WRONG = r"<script>alert(1)</script>\boxed{61}"


def evaluation(rate: float) -> dict:
    held_out = {
        "pass@1": rate,
        "response_tokens_mean": 10 + 20 * rate,
        "problems": 100,
        "samples": 1,
        "self_corrected_rate": 0.05,
        "by_difficulty": {"1": {"pass@1": rate}, "10": {"pass@1": rate / 2}, "2": {"pass@1": rate / 4}},
        "by_style": {"working": {"share": rate, "pass@1": 0.9}, "direct": {"share": 1 - rate, "pass@1": 0.2}},
    }
    return {"held_out": held_out, "ood": {"pass@1": rate / 10, "problems": 50, "samples": 2}}


def rollout(task: Task, completion: str) -> Rollout:
    right = completion != WRONG
    zeros = np.zeros(9, np.float32)
    mask = np.arange(9) > 2
    verdict = Verdict.correct("71") if right else Verdict.wrong("61")
    ids = zeros.astype(np.int32)
    return Rollout(task, ids, mask, zeros, ids, completion, True, False, verdict)


def make_run(run_dir, steps: int) -> None:
    (run_dir / "config.toml").write_text(f'steps = {steps + 5}\n[learner]\nlr = 0.0002\nloss = "<cispo>"\n')
    lines = [step_metrics(step=0, policy_version=0, seconds={}, evaluation=evaluation(0.3))]
    with Journal(run_dir) as journal:
        for step in range(1, steps + 1):
            task = Task("t", "87+74-90", "71", "chain", 2.0)
            completions = (RIGHT, WRONG, CORRECTED)
            group = Group(task, tuple(rollout(task, text) for text in completions), step)
            line = step_metrics(
                step=step,
                policy_version=step - 1,
                seconds=SECONDS,
                groups=[group],
                entropy=None if step == 2 else 0.5,
                evaluation=evaluation(0.9) if step == steps else None,
            )
            lines.append(line)
            if step in (1, steps // 2 + 1, steps):
                journal.append_groups(step, [group], SamplingParams(64))
                journal.mark_used(step, [Use(step, i, i, 0.5) for i in range(3)])
                journal.compact(step)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(plain(line)) + "\n" for line in lines))


@pytest.mark.parametrize("steps", [1, 3, 400])
def test_report_of_a_run_of_any_length(tmp_path, steps):
    make_run(tmp_path, steps)
    page = write_report(tmp_path).read_text()
    for expected in (
        f"step {steps} of {steps + 5}.",
        "<i>0.30 →</i> 0.90",
        "± 0.06, 100 problems × 1",
        "<i>0.03 →</i> 0.09",
        "<i>16.0 →</i> 28.0",
        "Styles of held-out answers",
        "Where a step's time goes",
        "<del>87+74=151</del>;no,87+74=161",
        "right, after correcting itself: 1 of 3 rollouts",
        f"<h3>Step {steps}</h3>",
        "<td>learner.loss</td><td>&lt;cispo&gt;</td>",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
    ):
        assert expected in page, expected
    assert "<script" not in page
    assert "nan" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
    assert not re.search(r"(?:src|href|url)\s*[=(]", page), "the page must load nothing"
    assert page.count("<svg") == page.count("</svg>") >= 10
    assert len(page) < 1_500_000


def test_report_before_the_first_step_and_of_no_run(tmp_path):
    with pytest.raises(UsageError, match="is not a run: it has neither"):
        write_report(tmp_path)
    (tmp_path / "config.toml").write_text("steps = 3\n")
    assert "no finished step yet" in write_report(tmp_path).read_text()


def test_report_without_evaluation_shows_training(tmp_path):
    with MetricsWriter(tmp_path, trackers=[]) as writer:
        for step, rate in ((1, 0.25), (2, 0.5)):
            writer.write({"step": step, "pass_rate": rate, "response_tokens_mean": 7.0, "seconds": SECONDS})
    page = write_report(tmp_path).read_text()
    assert "training pass rate<b><i>0.25 →</i> 0.50" in page
    assert "tokens in training" in page


def test_a_peak_that_was_lost_is_said(tmp_path):
    with MetricsWriter(tmp_path, trackers=[]) as writer:
        for step, rate in ((0, 0.3), (5, 0.95), (10, 0.4)):
            writer.write({"step": step, "seconds": SECONDS, "eval": evaluation(rate)})
    assert "best 0.95 at step 5" in write_report(tmp_path).read_text()


def test_picture_is_one_valid_svg(tmp_path):
    make_run(tmp_path, 3)
    out = write_picture(tmp_path, tmp_path / "run.svg")
    root = ElementTree.parse(out).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    inner = [child for child in root if child.tag.endswith("svg")]
    assert [svg.get("aria-label") for svg in inner] == [
        "Right at the first attempt (pass@1)",
        "Response length, tokens (never rewarded)",
        "Held-out pass@1 by difficulty",
        "Styles of held-out answers, share",
    ]
    assert "held-out pass@1 0.30 → 0.90" in out.read_text()


def test_difficulty_levels_sort_as_numbers_and_merge_beyond_seven():
    entries = [{"step": 0, "eval": evaluation(0.8)}]
    assert [(s.label, s.points[0][1]) for s in difficulty_chart(entries, "held_out").series] == [
        ("1", 0.8),
        ("2", 0.2),
        ("10", 0.4),
    ]
    many = {str(level): {"pass@1": level / 14} for level in range(14)}
    merged = difficulty_chart([{"step": 0, "eval": {"ood": {"by_difficulty": many}}}], "ood").series
    assert len(merged) == 7 and merged[0].label == "0–1"
    assert merged[0].points == ((0, pytest.approx(0.5 / 14)),)
    assert difficulty_chart([{"step": 0}], "ood").series == ()


def test_a_chart_a_family_of_training_in_windows_and_held_out():
    line = lambda step, rate, n: {"step": step, "families": {"a": {"pass_rate": rate, "rollouts": n}}}  # noqa: E731
    held_out = {"held_out": {"by_family": {"a": {"pass@1": 0.5}, "b": {"pass@1": 0.25}}}}
    entries = [{"step": 0, "families": {}, "eval": held_out}]
    entries += [line(step, 0.0, 8) for step in range(1, 20)] + [line(20, 1.0, 24)]
    assert family_charts(entries) == [], "a single family has the curves of the whole"
    entries[3]["families"]["b"] = {"pass_rate": None, "rollouts": 8}  # nothing was scored
    a, b = family_charts(entries)
    assert (a.title, b.title) == ("a: pass@1", "b: pass@1")
    training, evaluated = a.series
    assert (
        training.points[-1] == (20, 24 / 32) and training.points[0] == (2, 0.0) and len(training.points) == 10
    )
    assert evaluated.points == ((0, 0.5),)
    assert [s.points for s in b.series] == [(), ((0, 0.25),)]


def test_styles_that_vanish_have_share_zero():
    later = evaluation(1.0)
    del later["held_out"]["by_style"]["direct"]
    shares, rates = style_charts([{"step": 0, "eval": evaluation(0.25)}, {"step": 9, "eval": later}])
    assert {s.label: s.points for s in shares.series} == {
        "direct": ((0, 0.75), (9, 0.0)),
        "working": ((0, 0.25), (9, 1.0)),
    }
    assert {s.label: s.points for s in rates.series}["direct"] == ((0, 0.2),)


def test_sections_leave_out_empty_charts():
    assert sections([{"step": 0, "seconds": {}}]) == []
    assert pass_chart([{"step": 0}]).series[0].points == ()


def line_points(svg: str) -> list[tuple[float, float]]:
    (points,) = re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    return [tuple(float(v) for v in pair.split(",")) for pair in points.split()]


def test_line_chart_puts_values_where_they_belong():
    chart = Chart("a < b", (Series("x", ((0, 0.0), (5, 0.5), (10, 1.0)), "s0"),), bounds=(0, 1), form=".2f")
    svg = render(chart)
    ElementTree.fromstring(svg)
    assert line_points(svg) == [(44, 212), (246, 128), (448, 44)]
    assert "a &lt; b" in svg and "step 5: x 0.50" in svg


@pytest.mark.parametrize("points", [((3, 0.0),), ((3, -2.5),), ((0, 1e-7), (1, 2e-7)), ((0, 1e9), (1, 1e9))])
def test_degenerate_charts_are_finite(points):
    svg = render(Chart("t", (Series("x", points, "s0"),)))
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg
    assert all(0 <= x <= 460 and 0 <= y <= 236 for x, y in line_points(svg))


def test_charts_of_nothing_are_empty():
    assert render(Chart("t", ())) == ""
    assert render(Chart("t", (Series("x", ((0, float("nan")),), "s0"),))) == ""
    ElementTree.fromstring(picture([], "title"))


def test_shares_fill_the_height():
    series = (Series("a", ((1, 3.0), (2, 0.0)), "s0"), Series("b", ((1, 1.0), (2, 0.0)), "s1"))
    svg = render(Chart("t", series, kind="shares", form=".1f"))
    ElementTree.fromstring(svg)
    heights = [float(h) for h in re.findall(r'<rect class="fs\d" x="44.0" [^>]*height="([\d.]+)"', svg)]
    assert heights == [126.0, 42.0]  # three quarters and one quarter of 168
    assert "step 1: a 3.0, b 1.0" in svg


def test_buckets_and_ticks():
    assert buckets([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], 2) == [(1, 2.0), (3, 6.0)]
    assert buckets([(0, 1.0)], 2) == [(0, 1.0)]
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3, 17) == [5, 10, 15]
    assert ticks(2, 2) == [2]
