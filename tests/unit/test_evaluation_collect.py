"""Sampling with a store: what is there is never sampled again, what finished is kept, cuts reuse chains."""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from evaluations import IDENTITY, SOURCE, TASKS, collect, generator, stored, tokens

from envs.base import TextEnv
from reasoner.errors import ServerError, UsageError
from reasoner.evaluation.budgets import force_text, points_of, s1_metrics, standing_for
from reasoner.evaluation.store import CHAIN, EvalStore, Point
from reasoner.types import Task

RIGHT = r"\boxed{2}"


def run(directory, script, samples, points=(), max_tokens=16, **kwargs):
    generate, sampler = generator(script, **kwargs)
    return asyncio.run(collect(directory, generate, samples, points, max_tokens)), sampler


def test_more_samples_later_are_only_the_difference(tmp_path):
    done, sampler = run(tmp_path, [tokens(RIGHT)], samples=3)
    assert done == 6 and sum(len(p) for p, _ in sampler.requests) == 6
    done, sampler = run(tmp_path, [tokens(r"\boxed{3}")], samples=5)
    assert done == 4 and sum(len(p) for p, _ in sampler.requests) == 4
    done, sampler = run(tmp_path, [tokens("")], samples=5)
    assert done == 0 and not sampler.requests
    by_task = {
        t.id: [s.grade.verdict.is_correct for s in stored(tmp_path) if s.task_id == t.id] for t in TASKS
    }
    assert by_task == {"a": [True] * 3 + [False] * 2, "b": [False] * 3 + [True] * 2}


def test_what_finished_before_a_failure_is_kept(tmp_path):
    def script(prompt, params, number):
        if number == 3:
            raise ServerError("gone")
        return tokens(RIGHT)

    with pytest.raises(ServerError, match="gone"):
        run(tmp_path, script, samples=4, max_in_flight=1)
    assert len(stored(tmp_path)) == 3
    done, _ = run(tmp_path, [tokens(RIGHT)], samples=4)
    assert done == 5 and len(stored(tmp_path)) == 8


def test_an_interrupt_keeps_what_finished(tmp_path):
    async def interrupted():
        generate, sampler = generator([tokens(RIGHT)], max_in_flight=1)
        sampler.delay_s = 0.02
        running = asyncio.create_task(collect(tmp_path, generate, 50))
        while len(sampler.requests) < 3:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(interrupted())
    assert 0 < len(stored(tmp_path)) < 100


def test_a_cut_goes_on_from_the_chains_own_tokens(tmp_path):
    chain, answer = "1+1=2; so \\boxed{2}", "2}"
    point = Point("cut", 6, "\\boxed{")

    def script(prompt, params, number):
        return tokens(answer if "".join(map(chr, prompt)).endswith("\\boxed{") else chain)

    _, sampler = run(tmp_path, script, samples=1, points=[point])
    cut = next(s for s in stored(tmp_path) if s.point == point and s.task_id == "a")
    assert cut.completion == "1+1=2;" + "\\boxed{" + answer
    assert sampler.requests[-1][0][0] == [ord(c) for c in "1+2\n1+1=2;\\boxed{"]
    assert cut.thinking_tokens == 6 and cut.tokens == 6 + 7 + 3, "the forced text and the end token count too"
    assert cut.grade.verdict.is_correct
    assert cut.logprobs.tolist() == [-1.0] * 6 + [0.0] * 7 + [-1.0] * 3
    assert cut.mean_logprob == -1.0, "forced tokens were not sampled"


def test_a_chain_that_ends_before_the_budget_stands_for_it(tmp_path):
    point = Point("cut", 12, "\\boxed{")
    _, sampler = run(tmp_path, [tokens(RIGHT)], samples=1, points=[point])
    assert len(sampler.requests) == 2, "nothing beside the two chains"
    rows = {s.point: s for s in stored(tmp_path) if s.task_id == "a"}
    assert standing_for(point, rows) is rows[CHAIN]


def test_an_extension_goes_on_where_the_model_ended(tmp_path):
    first, second, third = points = [Point("extended", i, " no,") for i in (1, 2, 3)]

    def script(prompt, params, number):
        return tokens("4" if "no," in "".join(map(chr, prompt)) else "3")

    run(tmp_path, script, samples=1, points=points)
    rows = {s.point: s for s in stored(tmp_path) if s.task_id == "a"}
    assert rows[first].completion == "3 no,4" and rows[first].tokens == 1 + 4 + 2
    assert rows[second].completion == "3 no,4 no,4"
    assert third not in rows, "16 tokens of budget leave no room for another round"
    assert standing_for(third, rows) is rows[second]


def test_a_directory_belongs_to_one_evaluation_and_its_tasks(tmp_path):
    with EvalStore(tmp_path, IDENTITY) as store:
        store.add_tasks("held_out", TASKS)
    with pytest.raises(UsageError, match=r"sampling.max_tokens: 16 there, 32 now.*--out"):
        EvalStore(tmp_path, {"model": "scripted", "sampling": {"max_tokens": 32}})
    with EvalStore(tmp_path, IDENTITY) as store, pytest.raises(UsageError, match="the task a is not the one"):
        store.add_tasks("held_out", [Task("a", "other", "2")])


def test_export_has_a_row_a_sample(tmp_path):
    run(tmp_path, [tokens(RIGHT)], samples=2)
    with EvalStore(tmp_path, IDENTITY) as store:
        store.export(tmp_path / "samples.parquet")
    rows = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    assert len(rows) == 4
    first = rows[0]
    assert (first["task_id"], first["sample"], first["kind"], first["status"]) == ("a", 0, "chain", "correct")
    assert first["token_ids"] == [*map(ord, "1+1\n"), *tokens(RIGHT)] and first["prompt"] == "1+1"


@pytest.mark.parametrize(
    ("so_far", "appended"),
    [
        ("1+1=", r"\boxed{"),
        (r"1+1=2;\boxed{", ""),  # an answer is being written
        (r"1+1=2;\boxed{2} no,", r"\boxed{"),
        ("<think>1+1", "\n</think>\\boxed{"),
        ("<think>1+1</think>so", r"\boxed{"),
    ],
)
def test_forced_text(so_far, appended):
    assert force_text(so_far, r"\boxed{") == appended


def test_points_are_ordered_so_that_parents_come_first():
    assert points_of([64, 32, 64], "F", "Wait", 2) == (
        Point("cut", 32, "F"),
        Point("cut", 64, "F"),
        Point("extended", 1, "Wait"),
        Point("extended", 2, "Wait"),
    )


def test_s1_metrics_by_hand():
    # slopes per 1000 tokens: (0.4-0.2)/10, (0.5-0.2)/30, (0.5-0.4)/20 → 20, 10, 5
    found = s1_metrics([(10, [10, 9], 10.0, 0.2), (20, [20, 25], 20.0, 0.4), (40, [40, 40], 40.0, 0.5)])
    assert found["scaling_per_1000_tokens"] == pytest.approx((20 + 10 + 5) / 3)
    assert found["control"] == pytest.approx(5 / 6)
    assert found["performance"] == 0.5
    assert np.isfinite(list(found.values())).all()


class Twice(TextEnv):
    """Answers a draft with "Check it." and grades the second action."""

    def __init__(self, task):
        super().__init__()
        self.task, self.turns = task, 0

    def begin(self, task):
        self.turns = 0
        return task, task.prompt + "\n"

    def respond(self, action):
        self.turns += 1
        return ("Check it.", False, False, None) if self.turns == 1 else ("", True, False, action)


def test_drafts_of_several_turns_are_candidates(tmp_path, monkeypatch):
    """Self-correction as sequential compute: the draft's answer counts as an answer on the way."""
    monkeypatch.setattr(type(SOURCE), "env", lambda self, task: Twice(task))
    run(tmp_path, [tokens(r"\boxed{1}"), tokens(RIGHT)], samples=1, max_tokens=64, max_in_flight=1)
    chain = next(s for s in stored(tmp_path) if s.task_id == "a")
    assert chain.completion == RIGHT and chain.said == r"\boxed{1}" + RIGHT
    assert chain.grade.candidates == ("1", "2") and chain.grade.candidates_correct == (False, True)
    assert chain.tokens == 2 * len(tokens(RIGHT)), "the observation is not sampled"
    assert chain.mean_logprob == -1.0
