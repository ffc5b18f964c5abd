"""How the short run's loop is measured from outside, and how operations of the learner are told apart."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import figures, quick
from benchmarks.learner_profile import shares
from benchmarks.quick import _watch

STEPS = """
import sys, time
with open(sys.argv[1], "a", buffering=1) as lines:
    for seconds in (0.0, 0.3, 0.0):
        until = time.process_time() + seconds
        while time.process_time() < until: pass
        print("{}", file=lines)
        time.sleep(0.15)
"""


def test_cpu_seconds_of_the_driver_between_two_lines(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", STEPS, str(metrics)])
    seen = _watch(process, metrics)
    assert process.returncode == 0 and len(seen) == 3
    busy, idle = (b[1] - a[1] for a, b in zip(seen[:-1], seen[1:], strict=True))
    assert 0.2 < busy < 0.5 and idle < 0.1, "it works for 0.3 s, then it only waits"


def test_shares_of_operations_by_their_own_time():
    times = {
        "aten::mm": 6,
        "aten::addmm_": 1,
        "aten::_flash_attention_for_cpu": 2,
        "aten::mul": 1,
        "Backward": 9,
    }
    events = [SimpleNamespace(key=key, self_cpu_time_total=time) for key, time in times.items()]
    assert shares(events) == pytest.approx({"attention": 0.2, "products": 0.7, "elementwise": 0.1})


def test_a_short_version_leaves_the_whole_benchmark_s_results_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    whole, short = figures.Figure("f", 1.0, "s"), figures.Figure("f", 2.0, "s")
    figures.report("learner_gemm", [whole])
    monkeypatch.setenv(figures.SUFFIX, "_quick")
    figures.report("learner_gemm", [short])
    values = {p.name: json.loads(p.read_text())["figures"][0]["value"] for p in tmp_path.iterdir()}
    assert values == {"learner_gemm.json": 1.0, "learner_gemm_quick.json": 2.0}


def test_what_make_bench_measures_at_length_is_a_short_version_here():
    makefile = (Path(quick.__file__).parents[1] / "Makefile").read_text()
    for benchmark, *_ in quick.SHORTENED:
        assert f"-m benchmarks.{benchmark}" in makefile
    assert "-m benchmarks.rollout" not in makefile, "else it is to be shortened, too"


def test_a_figure_is_a_line_of_words():
    line = figures.Figure("busy_share", 0.5, "share", 0.25, 0.75).line()
    assert line.split() == ["figure", "busy_share", "0.5", "share", "0.25", "0.75"]
    for unit in ("of time", ""):
        with pytest.raises(ValueError, match="one word"):
            figures.Figure("busy_share", 0.5, unit)
