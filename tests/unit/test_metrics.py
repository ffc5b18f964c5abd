import json
import math
import resource
import subprocess
import sys

import numpy as np
import pytest

from reasoner.errors import ReasonerError
from reasoner.metrics import (
    STEP_KEYS,
    MetricsWriter,
    Timeline,
    flatten,
    plain,
    read_metrics,
    reward_by_length,
    rollout_metrics,
    step_metrics,
)
from reasoner.types import Group, Rollout, Task, Verdict

TASK = Task("t", "1+1", "2")


def rollout(actions: int, versions: list[int], verdict: Verdict, truncated=False, completion="") -> Rollout:
    length = 2 + actions
    mask = np.arange(length) >= 2
    version = np.full(length, -1, np.int32)
    version[mask] = versions
    zeros = np.zeros(length, np.float32)
    return Rollout(
        TASK, zeros.astype(np.int32), mask, zeros, version, completion, not truncated, truncated, verdict
    )


def test_rollout_metrics_by_hand():
    corrected = r"\boxed{3}no,1+1=2;\boxed{2}"
    groups = [
        Group(
            TASK,
            (
                rollout(4, [5, 5, 6, 6], Verdict.correct("2"), completion=corrected),
                rollout(2, [7, 7], Verdict.wrong("3", reward=0.25)),
                rollout(6, [7] * 6, Verdict.unparsed(), truncated=True),
            ),
        ),
        Group(TASK, (rollout(3, [7] * 3, Verdict.timeout()), rollout(5, [7] * 5, Verdict.error("broke")))),
    ]
    metrics = rollout_metrics(groups, policy_version=8)
    assert metrics == {
        "groups": 2,
        "rollouts": 5,
        "reward_mean": pytest.approx((1 + 0.25 + 0 + 0) / 4),
        "pass_rate": 1 / 4,
        "response_tokens_mean": 4.0,
        "truncated_rate": 1 / 5,
        "unparsed_rate": 1 / 4,
        "masked_rate": 1 / 5,
        "verifier_timeouts": 1,
        "verifier_errors": 1,
        "bad_references": 0,
        "self_corrected_rate": 1 / 4,
        "staleness_mean": pytest.approx((3 + 1 + 1 + 1 + 1) / 5),
        "staleness_max": 3,
        "reward_by_length": {
            "q1": {"tokens": 2.0, "reward": 0.25},
            "q2": {"tokens": 3.0, "reward": 0.0},
            "q3": {"tokens": 4.0, "reward": 1.0},
            "q4": {"tokens": 6.0, "reward": 0.0},
        },
        "families": {
            "default": {
                "rollouts": 5,
                "pass_rate": 1 / 4,
                "reward_mean": pytest.approx(1.25 / 4),
                "response_tokens_mean": 4.0,
            }
        },
    }


def test_reward_by_length_by_hand():
    scored = [(9, 1.0), (1, 0.0), (5, 1.0), (5, 0.0), (5, 0.0), (2, 1.0), (5, 0.0), (7, 0.0)]
    assert reward_by_length(scored) == {
        "q1": {"tokens": 1.5, "reward": 0.5},
        "q2": {"tokens": 5.0, "reward": 0.25},
        "q3": {"tokens": 5.0, "reward": 0.25},  # equal lengths share their mean
        "q4": {"tokens": 8.0, "reward": 0.5},
    }
    assert reward_by_length(scored[:3]) is None


def test_metrics_of_nothing_are_null_not_nan():
    metrics = rollout_metrics([], 0)
    assert metrics["pass_rate"] is None and metrics["staleness_max"] is None
    unscored = rollout_metrics([Group(TASK, (rollout(1, [0], Verdict.error("x")),))], 0)
    assert unscored["reward_mean"] is None and unscored["masked_rate"] == 1.0


def test_step_metrics_holds_the_contract_keys_in_order_then_the_rest():
    line = step_metrics(
        step=3, policy_version=2, seconds={"total": 1.0}, entropy=0.5, loss=-0.1, evaluation={"held_out": {}}
    )
    assert tuple(line)[: len(STEP_KEYS)] == STEP_KEYS
    assert tuple(line)[-1] == "eval" and line["loss"] == -0.1 and line["entropy"] == 0.5
    assert line["grad_norm"] is None and line["seconds"] == {"total": 1.0}
    assert "eval" not in step_metrics(step=0, policy_version=0, seconds={})


def test_timeline_partitions_the_time():
    now = [0.0]
    timeline = Timeline(clock=lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    spend(1)
    with timeline.measure("rollout"):
        spend(2)
        with timeline.measure("verify"):
            spend(4)
        spend(8)
    with pytest.raises(RuntimeError), timeline.measure("learn"):
        spend(16)
        raise RuntimeError
    assert timeline.lap() == {
        "rollout": 10,
        "verify": 4,
        "learn": 16,
        "sync": 0,
        "wait": 1,
        "total": 31,
    }
    with timeline.measure("sync"):
        spend(1)
        assert timeline.lap()["sync"] == 1
        spend(2)
    assert timeline.lap() == {"rollout": 0, "verify": 0, "learn": 0, "sync": 2, "wait": 0, "total": 2}
    with pytest.raises(ValueError, match="unknown phase 'eval'"), timeline.measure("eval"):
        pass


def test_lines_are_on_disk_when_write_returns_and_hold_no_nan(tmp_path):
    writer = MetricsWriter(tmp_path, trackers=[])
    writer.write(
        {"step": 0, "entropy": math.nan, "x": np.float32(0.5), "eval": {"ood": {"pass@1": math.inf}}}
    )
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 0, "entropy": null, "x": 0.5, "eval": {"ood": {"pass@1": null}}}\n'
    )
    with pytest.raises(ValueError, match="step 0 come after those of step 0"):
        writer.write({"step": 0})
    writer.close()


def test_a_new_run_never_appends_to_an_old_one(tmp_path):
    with MetricsWriter(tmp_path, trackers=[]) as writer:
        writer.write({"step": 0})
    with pytest.raises(ReasonerError, match="already holds 1 steps"):
        MetricsWriter(tmp_path, trackers=[])


def test_resume_removes_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3, "rew')
    assert [e["step"] for e in read_metrics(tmp_path)] == [0, 1, 2]
    with MetricsWriter(tmp_path, trackers=[], resume_step=1) as writer:
        writer.write({"step": 2, "again": True})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2, "again": true}\n'


def test_what_came_late_is_added_to_the_last_line_and_to_the_trackers(tmp_path):
    tracker = Recording()
    with MetricsWriter(tmp_path, trackers=[tracker]) as writer:
        writer.write({"step": 1, "reward_mean": 0.5})
        writer.write({"step": 2, "reward_mean": 0.75})
        line = writer.amend({"eval": {"ood": {"pass@1": np.float64(0.25), "entropy": math.nan}}})
        assert line == read_metrics(tmp_path)[-1]
        writer.write({"step": 3})
    assert read_metrics(tmp_path) == [
        {"step": 1, "reward_mean": 0.5},
        {"step": 2, "reward_mean": 0.75, "eval": {"ood": {"pass@1": 0.25, "entropy": None}}},
        {"step": 3},
    ]
    assert tracker.logged[2] == (2, {"eval/ood/pass@1": 0.25}), "only what is new"


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ReasonerError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n[1]\n')
    with pytest.raises(ReasonerError, match=r"line 2: expected an object with an integer `step`"):
        read_metrics(tmp_path)
    assert read_metrics(tmp_path / "nowhere") == []


LIMITED = """
import signal, sys
from pathlib import Path
from reasoner.errors import ReasonerError
from reasoner.metrics import MetricsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = MetricsWriter(Path(sys.argv[1]), trackers=[])
try:
    for step in range(1000):
        writer.write({"step": step, "padding": "x" * 70})
except ReasonerError as error:
    print(step, error)
"""


def test_a_full_disk_names_the_path_and_leaves_complete_lines(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )
    step, message = out.stdout.strip().split(" ", 1)
    path = tmp_path / "metrics.jsonl"
    assert message.startswith(f"cannot write {path}: File too large; free some space"), out
    assert path.read_bytes().endswith(b"}\n")
    assert [e["step"] for e in read_metrics(tmp_path)] == list(range(int(step)))


class Recording:
    def __init__(self, fail=False):
        self.logged, self.fail, self.closed = [], fail, False

    def log(self, step, scalars):
        if self.fail:
            raise ConnectionError("no network")
        self.logged.append((step, dict(scalars)))

    def close(self):
        self.closed = True


def test_trackers_get_flat_numbers_and_a_failing_one_is_dropped_once(tmp_path):
    good, bad, said = Recording(), Recording(fail=True), []
    with MetricsWriter(tmp_path, trackers=[bad, good], warn=said.append) as writer:
        writer.write({"step": 1, "reward_mean": 0.5, "entropy": None, "seconds": {"learn": 2}})
        writer.write({"step": 2, "eval": {"held_out": {"pass@1": 0.25}}})
    assert good.logged == [
        (1, {"reward_mean": 0.5, "seconds/learn": 2.0}),
        (2, {"eval/held_out/pass@1": 0.25}),
    ]
    assert good.closed
    assert said == ["a tracker failed and is dropped: Recording: ConnectionError: no network"]


def test_tensorboard_files_hold_the_scalars_and_torch_is_not_loaded(tmp_path):
    program = f"""
import sys
from pathlib import Path
from reasoner.metrics import MetricsWriter
with MetricsWriter(Path({str(tmp_path)!r})) as writer:
    writer.write({{"step": 4, "reward_mean": 0.5, "eval": {{"ood": {{"pass@1": 0.25}}}}}})
assert not {{"torch", "ray", "vllm", "tensorflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (tmp_path / "tensorboard").iterdir()
    events = [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]
    assert [e.step for e in events] == [4]
    values = {v.tag: v.tensor.float_val[0] for v in events[0].summary.value}
    assert values == {"reward_mean": 0.5, "eval/ood/pass@1": 0.25}


def test_plain_refuses_what_json_cannot_say():
    assert plain({1: (np.int64(2), np.array([1.0, math.nan]), True, "x", None)}) == {
        "1": [2, [1.0, None], True, "x", None]
    }
    assert json.dumps(plain({"a": np.bool_(True)})) == '{"a": true}'
    with pytest.raises(TypeError, match="not Verdict"):
        plain({"v": Verdict.wrong()})


def test_flatten_joins_names():
    assert dict(flatten({"step": 3, "a": {"step": 1, "b": None, "c": "x"}, "d": True})) == {
        "a/step": 1.0,
        "d": 1.0,
    }
