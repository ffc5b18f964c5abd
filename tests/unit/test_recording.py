"""A step's line and the fates of its groups: what is dropped as too old is told with its length."""

import logging

import numpy as np
import pytest

from reasoner.flops import FlopCounter
from reasoner.journal import Journal, read_step
from reasoner.metrics import PHASES, STEP_KEYS
from reasoner.recording import Recorder, StepOutcome
from reasoner.types import Group, Rollout, SamplingParams, SyncReport, Task, Verdict

SECONDS = {**dict.fromkeys(PHASES, 1.0), "total": 5.0}
FLOPS = FlopCounter(matmul_parameters=1, attention_width=1)


def group(index, *lengths):
    task = Task(f"t{index}", "1+1", "2")
    return Group(task, tuple(rollout(task, length) for length in lengths), index)


def rollout(task, length):
    """Two tokens of prompt and `length` sampled ones."""
    mask = np.arange(length + 2) >= 2
    return Rollout(
        task=task,
        token_ids=np.arange(length + 2, dtype=np.int32),
        action_mask=mask,
        behaviour_logprobs=np.where(mask, -1, 0).astype(np.float32),
        policy_version=np.where(mask, 0, -1).astype(np.int32),
        completion="x" * length,
        terminated=True,
        truncated=False,
        verdict=Verdict.correct("2"),
    )


GROUPS = [group(0, 2, 4), group(1, 3, 4), group(2, 9, 6), group(3, 5, 8)]


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append_groups(None, GROUPS, SamplingParams(8))
        yield journal


@pytest.fixture
def recorder(journal):
    return Recorder(journal, FLOPS, asynchronous=True)


def outcome(kept, stale):
    return StepOutcome(5, kept, [], stale, None, SyncReport(5))


def test_the_length_of_what_is_dropped_is_told_against_the_kept(recorder, journal, caplog):
    out = outcome(kept=GROUPS[:2], stale=GROUPS[2:])
    line = recorder.metrics_of(1, out, SECONDS, None, elapsed_s=5.0)
    assert line["dropped_stale"] == 2
    assert line["dropped_tokens_mean"] == (9 + 6 + 5 + 8) / 4
    with caplog.at_level(logging.WARNING):
        recorder.journal_fates(1, out)
    assert [record.getMessage() for record in caplog.records] == [
        "group 2 is too old and dropped; its rollouts have [9, 6] tokens, the kept ones 3.2 on average",
        "group 3 is too old and dropped; its rollouts have [5, 8] tokens, the kept ones 3.2 on average",
    ]
    table = read_step(journal.run_dir, 1)
    fates = dict(zip(table["group_index"].to_pylist(), table["fate"].to_pylist(), strict=True))
    assert fates == {0: "filtered", 1: "filtered", 2: "stale", 3: "stale"}


def test_where_nothing_is_dropped_its_length_is_null(recorder, caplog):
    out = outcome(kept=GROUPS, stale=[])
    line = recorder.metrics_of(1, out, SECONDS, None, elapsed_s=5.0)
    assert line["dropped_stale"] == 0 and line["dropped_tokens_mean"] is None
    assert tuple(line)[: len(STEP_KEYS)] == STEP_KEYS
    recorder.journal_fates(1, out)
    assert not caplog.records


def test_where_nothing_is_kept_the_log_says_so(recorder, caplog):
    recorder.journal_fates(1, outcome(kept=[], stale=GROUPS[3:]))
    assert caplog.messages == [
        "group 3 is too old and dropped; its rollouts have [5, 8] tokens, the kept ones none on average"
    ]
