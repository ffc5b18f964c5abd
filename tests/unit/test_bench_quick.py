"""How the short run's loop is measured from outside, and how operations of the learner are told apart."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

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
