"""Steps taken again from metrics and journal: which count as finished, and that the batch is the same."""

import json

import numpy as np
import pytest

from reasoner.config import Config
from reasoner.journal import Journal
from reasoner.redo import finished_steps, last_finished_step
from reasoner.types import Group, Rollout, SamplingParams, Task, Verdict
from reasoner.update import lr_scale, prepare_update

CONFIG = Config(steps=10, rollout={"groups_per_step": 2, "group_size": 2, "max_tokens": 8})


def rollout(task, seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(4, 9))
    mask = np.arange(length) >= 2
    return Rollout(
        task=task,
        token_ids=rng.integers(0, 300, length).astype(np.int32),
        action_mask=mask,
        behaviour_logprobs=np.where(mask, -rng.random(length), 0).astype(np.float32),
        policy_version=np.where(mask, 0, -1).astype(np.int32),
        completion=str(seed),
        terminated=True,
        truncated=False,
        verdict=Verdict.correct(str(seed)) if seed % 2 else Verdict.wrong(str(seed)),
    )


def group(index):
    task = Task(f"t{index}", f"{index}+1", str(index + 1))
    return Group(task, tuple(rollout(task, 10 * index + i) for i in range(2)), index)


@pytest.fixture
def run(tmp_path):
    """Steps 1 and 2 trained on two groups each, step 3 had no signal; one group waits for step 4."""
    with Journal(tmp_path) as journal:
        for step in (1, 2):
            trained = [group(2 * step + 1), group(2 * step)]  # in the order of the batch
            journal.append_groups(None, trained, SamplingParams(8))
            prepared = prepare_update(trained, CONFIG)
            journal.mark_used(step, prepared.uses(np.zeros(prepared.batch.num_tokens, np.float32)))
            journal.compact(step)
        journal.append_groups(None, [group(8), group(9)], SamplingParams(8))
        journal.mark_dropped(3, [8], "filtered")
    lines = [{"step": 0}, *({"step": s, "rollouts": n, "elapsed_s": s} for s, n in ((1, 4), (2, 4), (3, 2)))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_finished_is_what_metrics_and_journal_hold_whole(run):
    assert last_finished_step(run, 0) == 3
    assert last_finished_step(run, 1) == 3
    assert last_finished_step(run, 3) == 3
    (run / "rollouts" / "step_000002.parquet").unlink()
    assert last_finished_step(run, 0) == 1


def test_a_step_without_its_line_is_not_finished(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    assert last_finished_step(run, 0) == 1


def test_the_batch_is_the_one_that_was_trained_on(run):
    first, second, third = finished_steps(run, 0, 3, lambda step: CONFIG)
    expected = prepare_update([group(5), group(4)], CONFIG).batch
    for name, array in vars(second.prepared.batch).items():
        np.testing.assert_array_equal(array, vars(expected)[name], err_msg=name)
    assert [g.index for g in second.groups] == [4, 5]
    assert (first.lr_scale, second.lr_scale) == (lr_scale(CONFIG, 0), lr_scale(CONFIG, 1))
    assert third.prepared is None and [g.index for g in third.groups] == [8]
    assert [s.step for s in finished_steps(run, 2, 3, lambda step: CONFIG)] == [3]
