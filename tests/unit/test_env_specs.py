"""Specs on the command line, and mixtures: exact shares, gapless member streams, one verifier a task."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest

from envs import ArithmeticTasks, TaskSource, load_tasks
from envs.mixture import Mixture
from envs.specs import Spec, levels, members, read_spec, value
from envs.tasks import SingleTurnTasks, source_of, verifiers_of
from reasoner.errors import UsageError
from reasoner.metrics import family_metrics
from reasoner.types import Group, Task, Verdict
from verifiers import load_verifier
from verifiers.by_task import expecting


@dataclass(frozen=True)
class Counted(SingleTurnTasks):
    """Task i of the stream asks for i; two held-out tasks."""

    name: str
    base_template: str = "{prompt}!"
    chat_template: str = "{prompt}?"

    def train(self, index):
        return Task(f"{self.name}/{index}", str(index), str(index), self.name)

    def split(self, name, n):
        return [Task(f"{self.name}/h{i}", f"h{i}", "1", self.name) for i in range(min(n, 2))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("arithmetic", [("arithmetic", 1.0)]),
        ("a*3, b ,c*0.5", [("a", 3.0), ("b", 1.0), ("c", 0.5)]),
        ("a:x=1,y=2|3*2,b(z=[1,2], w=3),c", [("a:x=1,y=2|3", 2.0), ("b(z=[1,2], w=3)", 1.0), ("c", 1.0)]),
        ("", []),
    ],
)
def test_members_of_a_mixture(text, found):
    assert members(text) == found


def test_a_spec_taken_apart():
    assert read_spec("arithmetic:levels=1-2,families=a|b") == Spec(
        "arithmetic:levels=1-2,families=a|b", "arithmetic", {"levels": "1-2", "families": "a|b"}
    )
    spec = read_spec("rg:maze(size=[1, 2], name='a,b', rg:x(y=1))")
    assert (spec.head, spec.options, spec.arguments) == (
        "rg:maze",
        {"size": "[1, 2]", "name": "'a,b'"},
        ("rg:x(y=1)",),
    )
    assert read_spec("rg:maze").head == "rg:maze"
    assert read_spec("rg:maze,a=1,b=2") == Spec("rg:maze,a=1,b=2", "rg:maze", {"a": "1", "b": "2"})
    assert [value(t) for t in ("3", "0.5", "[1, 2]", "true", "'a'", "plain")] == [
        3,
        0.5,
        [1, 2],
        True,
        "a",
        "plain",
    ]
    assert levels("1-3") == (1, 2, 3) and levels("4|2|4") == (4, 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("arithmetic(levels=2", "'\\(' is never closed"),
        ("arithmetic)", "closes nothing"),
        ("arithmetic*0,arithmetic", "weight must be positive"),
        ("arithmetic*-1,countdown", "weight must be positive"),
        ("arithmetic(level=2)", "did you mean 'levels'"),
        ("arithmetic(easy)", "'easy' is no option"),
        ("arithmetic(levels=3-1)", "3 is more than 1"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UsageError, match=message):
        load_tasks(spec)


def test_shares_are_exact_and_member_streams_have_no_gaps():
    mixture = Mixture((Counted("a"), Counted("b"), Counted("c")), (3.0, 1.0, 1.0), ("a", "b", "c"), seed=4)
    tasks = [mixture.train(i) for i in range(100)]  # a block holds 2 / (1/5) = 10 tasks
    for block in range(10):
        families = Counter(t.family for t in tasks[10 * block : 10 * block + 10])
        assert families == {"a": 6, "b": 2, "c": 2}
    for name in "abc":
        assert [t.prompt for t in tasks if t.family == name] == [
            str(i) for i in range(sum(t.family == name for t in tasks))
        ]
    assert tasks[57] == mixture.train(57)
    other = Mixture(mixture.sources, mixture.weights, mixture.labels, seed=5)
    assert [t.family for t in tasks] != [other.train(i).family for i in range(100)]


def test_odd_weights_carry_over_from_block_to_block():
    mixture = Mixture((Counted("a"), Counted("b")), (2.0, 1.3), ("a", "b"))
    counts = Counter(mixture.train(i).family for i in range(33 * 6))
    assert abs(counts["a"] - 120) <= 4  # 198 × 2/3.3, up to the part of a block


def test_a_mixture_knows_where_a_task_comes_from():
    mixture = load_tasks("arithmetic:levels=1,arithmetic:levels=2*2", 3)
    assert isinstance(mixture, TaskSource) and not mixture.finite
    task = next(t for t in map(mixture.train, range(20)) if t.difficulty == 2)
    assert source_of(mixture, task) == ArithmeticTasks(3, levels=(2,))
    assert task.id.startswith("1:arithmetic/train/3/")
    assert mixture.env(task).reset()[0] == task.prompt
    assert source_of(ArithmeticTasks(), task) == ArithmeticTasks()


def test_splits_are_mixed_too_and_smaller_ones_begin_larger_ones():
    mixture = Mixture((Counted("a"), Counted("b")), (1.0, 1.0), ("a", "b"), seed=1)
    assert Counter(t.family for t in mixture.split("held_out", 4)) == {"a": 2, "b": 2}
    assert len(mixture.split("held_out", 40)) == 4, "there are no more"
    same = Mixture(mixture.sources, mixture.weights, mixture.labels, seed=2)
    assert same.split("held_out", 4)[:2] == mixture.split("held_out", 2)


def test_a_member_without_more_leaves_its_places_to_the_others():
    arithmetic = ArithmeticTasks()
    mixture = Mixture((Counted("a"), arithmetic, Counted("b")), (1.0, 1.0, 2.0), ("a", "x", "b"))
    for n in (1, 4, 5, 30):
        assert len(mixture.split("held_out", n)) == n
    tasks = mixture.split("held_out", 30)
    own = [replace(t, id=f"1:{t.id}", metadata={"source": 1}) for t in arithmetic.split("held_out", 26)]
    assert [t for t in tasks if t.metadata["source"] == 1] == own
    assert Counter(t.family for t in tasks if t.metadata["source"] != 1) == {"a": 2, "b": 2}
    for n in range(30):
        assert mixture.split("held_out", n) == tasks[:n]


def test_each_task_is_judged_by_the_verifier_it_names():
    judge = load_verifier("auto")
    by_length = Task("t", "p", "3", metadata={"verifier": f"{__name__}:three_characters"})
    assert judge.verify("\\boxed{3}", Task("t", "1+2", "3")).is_correct
    assert not judge.verify("\\boxed{3}", by_length).is_correct
    assert judge.verify("abc", by_length).is_correct
    verdict = judge.verify("abc", Task("t", "p", "3", metadata={"verifier": "nonsense"}))
    assert verdict.status == "error" and "unknown verifier 'nonsense'" in verdict.detail
    assert judge.answer_key("\\boxed{3}", Task("t", "1+2", "3")) == "3"


def test_verifiers_that_a_source_needs_are_loaded_ahead():
    source = load_tasks("self_correct(calculus,countdown),arithmetic")
    assert verifiers_of(source) == {"math", "antiderivative", "countdown"}
    judge = expecting("auto", verifiers_of(source))
    judge.prepare()
    assert set(judge._loaded) == {"math", "antiderivative", "countdown"}
    assert expecting("math", {"countdown"}) == "math"


def three_characters(completion, task):
    return len(completion) == 3


def test_statistics_by_family():
    import numpy as np

    from reasoner.types import Rollout

    def rollout(task, tokens, verdict):
        empty = np.zeros(tokens)
        return Rollout(task, empty, np.ones(tokens, bool), empty, empty, "", True, False, verdict)

    a, b = Task("1", "p", "r", "a"), Task("2", "p", "r", "b")
    groups = [
        Group(a, (rollout(a, 2, Verdict.correct()), rollout(a, 4, Verdict.wrong(reward=0.25)))),
        Group(b, (rollout(b, 1, Verdict.error("x")),)),
    ]
    assert family_metrics(groups) == {
        "a": {"rollouts": 2, "pass_rate": 0.5, "reward_mean": 0.625, "response_tokens_mean": 3.0},
        "b": {"rollouts": 1, "pass_rate": None, "reward_mean": None, "response_tokens_mean": 1.0},
    }


def test_a_mixture_longer_than_a_file_name_may_be():
    mixture = load_tasks(",".join(f"arithmetic:levels={1 + i % 4}" for i in range(40)))
    assert len(mixture.sources) == 40 and mixture.train(0).prompt
