import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.arithmetic import ArithmeticTasks
from envs.tasks import load_tasks
from reasoner.config import Config
from reasoner.curriculum import FLOOR, MEMORY, Curriculum, Pool, cell
from reasoner.stream import TaskStream
from reasoner.types import Group, Rollout, Task, Verdict

NOTHING = np.zeros(1, np.float32)


def group(level: float, right: int, of: int, index: int = 0, masked: int = 0) -> Group:
    task = Task(f"t{index}", "1+1", "2", "chain", level)
    verdicts = [Verdict.correct()] * right + [Verdict.wrong()] * (of - right) + [Verdict.error("x")] * masked
    rollouts = [
        Rollout(task, NOTHING, NOTHING > 0, NOTHING, NOTHING - 1, "", True, False, v) for v in verdicts
    ]
    return Group(task, tuple(rollouts), index)


def test_a_pool_holds_pass_rate_and_variance_within_groups_and_forgets():
    curriculum = Curriculum(0)
    curriculum.update([group(1, 3, of=4), group(1, 4, of=4, masked=2, index=1)])
    pool = curriculum.pools["chain/1"]
    assert pool.pass_rate == pytest.approx((0.75 + 1.0) / 2)
    assert pool.variance == pytest.approx(0.75 * 0.25 * 4 / 3), "unbiased; the solved group adds nothing"
    assert pool.signal == pytest.approx((0.25 + 0.5 * 0.25) / (2 + 0.5) / 0.25)
    curriculum.update([])
    assert curriculum.pools["chain/1"].tasks == pytest.approx(2 * MEMORY)
    assert curriculum.pools["chain/1"].pass_rate == pytest.approx(0.875), "forgetting is no change of mind"
    assert curriculum.pools["chain/1"].signal > pool.signal, "but less certain, so worth a try"


def test_a_mixture_of_solved_and_hopeless_tasks_has_no_signal():
    curriculum = Curriculum(0)
    halves = [group(1, 16 * (i % 2), of=16, index=i) for i in range(10)]
    curriculum.update([*halves, *(group(2, 8, of=16, index=i) for i in range(10))])
    assert curriculum.pools["chain/1"].pass_rate == curriculum.pools["chain/2"].pass_rate == 0.5
    assert curriculum.pools["chain/1"].signal == pytest.approx(0.5 / 10.5)
    assert curriculum.pools["chain/2"].signal == 1.0


def test_a_group_with_one_verdict_says_nothing_about_variance():
    curriculum = Curriculum(0)
    curriculum.update([group(1, 1, of=1, masked=5)])
    assert curriculum.pools == {}


def test_tasks_are_taken_by_signal_with_a_floor_and_the_unknown_always():
    solved, middling = Pool(100.0, 100.0, 0.0), Pool(100.0, 50.0, 25.0)
    curriculum = Curriculum(0, {"chain/1": solved, "chain/2": middling})
    assert curriculum.probability("chain/1") == FLOOR
    assert curriculum.probability("chain/2") == curriculum.probability("chain/3") == 1.0
    taken = Counter(
        level
        for level in (1, 2, 3)
        for index in range(2000)
        if curriculum.accepts(Task("t", "1+1", "2", "chain", level), index)
    )
    assert taken[2] == taken[3] == 2000
    assert 57 < taken[1] < 143, "a twentieth of 2000, 4.5 standard deviations either way"


def test_where_everything_is_solved_everything_is_taken():
    curriculum = Curriculum(0, {"chain/1": Pool(50.0, 50.0, 0.0), "chain/2": Pool(50.0, 50.0, 0.0)})
    assert curriculum.probability("chain/1") == curriculum.probability("chain/2") == 1.0


def test_update_does_not_depend_on_the_order_of_arrival():
    groups = [group(1 + i % 3, i % 5, of=7, index=i) for i in range(20)]
    first, second = Curriculum(0), Curriculum(0)
    first.update(groups)
    second.update(groups[::-1])
    assert first.to_dict() == second.to_dict()


def test_metrics_give_share_and_pass_rate_of_each_cell():
    curriculum = Curriculum(0)
    groups = [group(1, 4, of=4), group(2, 2, of=4, index=1), group(2, 2, of=4, index=2)]
    curriculum.update(groups)
    found = curriculum.metrics(groups[:1])
    assert found["chain/1"]["share"] == 1.0 and found["chain/2"]["share"] == 0.0
    assert found["chain/1"]["pass_rate"] == 1.0 and found["chain/2"]["pass_rate"] == 0.5
    assert found["chain/1"]["probability"] < found["chain/2"]["probability"] == 1.0


def test_a_resumed_run_takes_the_same_tasks():
    def stream(state: dict) -> TaskStream:
        config = Config(seed=3, tasks={"curriculum": "adaptive"})
        return TaskStream.from_state(config, ArithmeticTasks(seed=3), state)

    def indices(stream: TaskStream, n: int) -> list[int]:
        return [stream.next()[0] for _ in range(n)]

    pools = {"chain/1": Pool(40.0, 40.0, 0.0), "chain/3": Pool(40.0, 20.0, 9.0)}
    running = stream({"curriculum": Curriculum(3, pools).to_dict()})
    before = indices(running, 30)
    resumed = stream(json.loads(json.dumps(running.state(waiting=[]))))
    after = indices(running, 30)
    assert indices(resumed, 30) == after
    levels = Counter(cell(running.source.train(i)) for i in [*before, *after])
    assert levels["chain/1"] < 6 < levels["chain/3"] + levels["chain/2"], levels
    assert max(after) > 60, "the stream was passed over in places"


class Stepped:
    """A source of one family whose levels come in turn."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def train(self, index: int) -> Task:
        return Task(f"t{index}", "1+1", "2", "chain", float(index % self.levels))


def train_on(source, pass_rate, adaptive: bool, steps: int = 40, groups: int = 16, size: int = 8):
    """(pass rate, share of groups with a signal) of every step of a policy whose pass rate on a task of some
    difficulty at some step is `pass_rate(difficulty, step)`. Sampled anew, as the loop would."""
    curriculum, rng, index, found = Curriculum(0), np.random.default_rng(0), 0, []
    for step in range(steps):
        taken = []
        while len(taken) < groups:
            task = source.train(index)
            if not adaptive or curriculum.accepts(task, index):
                right = int(rng.binomial(size, pass_rate(task.difficulty, step)))
                taken.append(replace(group(0, right, of=size, index=index), task=task))
            index += 1
        curriculum.update(taken)
        passed = [np.mean([r.verdict.is_correct for r in g.rollouts]) for g in taken]
        found.append((np.mean(passed), np.mean([0 < p < 1 for p in passed])))
    return np.array(found).T


@pytest.mark.parametrize(
    ("spec", "easiest", "hardest"),
    [("rg:chain_sum(levels=0-4)", 0, 4), ("number_theory", 1, 3), ("arithmetic", 1, 4)],
)
def test_a_policy_that_gets_better_stays_at_the_edge_of_its_ability(spec, easiest, hardest):
    """From solving a quarter of the easiest level to half of the hardest: one level of ability is a factor of
    e^1.5 in the odds. The first steps, before anything is known, are left out."""
    if spec.startswith("rg:"):
        pytest.importorskip("reasoning_gym")
    source = load_tasks(spec)

    def pass_rate(difficulty: float, step: int) -> float:
        ability = easiest - 0.7 + (hardest - easiest + 0.7) * step / 40
        return 1 / (1 + np.exp(1.5 * (difficulty - ability)))

    plain, plain_signal = train_on(source, pass_rate, adaptive=False)[:, 3:]
    stream, signal = train_on(source, pass_rate, adaptive=True)[:, 3:]
    within = np.mean((stream >= 0.2) & (stream <= 0.8))
    assert within >= 0.95, np.round(stream, 2)
    assert within > np.mean((plain >= 0.2) & (plain <= 0.8)), "which plain sampling does not give"
    assert signal.mean() > plain_signal.mean() + 0.05


@settings(max_examples=20, deadline=None)
@given(
    reachable=st.floats(0.4, 0.6),
    others=st.lists(st.one_of(st.floats(0, 0.05), st.floats(0.95, 1)), min_size=1, max_size=7),
)
def test_one_level_within_reach_is_found_among_solved_and_hopeless_ones(reachable, others):
    rates = [*others, reachable]
    stream, signal = train_on(
        Stepped(len(rates)), lambda level, step: rates[int(level)], adaptive=True, steps=30
    )
    assert 0.2 <= stream[10:].mean() <= 0.8
    assert signal[10:].mean() > 0.5, "most groups have something to teach"
