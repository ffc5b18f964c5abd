"""Interactive environments and mixtures with the real verifier processes."""

import asyncio
import sys
from pathlib import Path

import pytest

from envs import load_tasks
from envs.self_correct import RETRY
from reasoner.types import SamplingParams, Task
from rollouts.scripted import ScriptedSampler
from rollouts.worker import RolloutWorker
from verifiers import VerifierPool

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from test_worker import Letters, tokens


@pytest.fixture(scope="module")
def pool():
    with VerifierPool("auto", workers=1) as pool:
        yield pool


def run(pool, source, script, tasks, group_size, max_tokens=200):
    sampler = ScriptedSampler(script, version=1)
    worker = RolloutWorker(Letters(), source, "base", pool, 2000)
    results = asyncio.run(worker.run(tasks, group_size, SamplingParams(max_tokens), 0, sampler))
    return [r.group.rollouts for r in results]


def test_a_group_of_second_tries(pool):
    task = Task("t", "1+1", "2")
    first = ["\\boxed{2}", "\\boxed{3}", "\\boxed{4}"]
    second = ["\\boxed{2}", "\\boxed{5}"]
    source = load_tasks("self_correct(arithmetic,tries=2)")
    (rollouts,) = run(pool, source, [tokens(t) for t in (*first, *second)], [task], 3)
    assert [r.verdict.status for r in rollouts] == ["correct", "correct", "wrong"]
    assert [r.completion for r in rollouts] == ["\\boxed{2}", "\\boxed{2}", "\\boxed{5}"]
    lengths = [len(r.token_ids) for r in rollouts]
    assert lengths[1] == lengths[0] + len(RETRY) + len(tokens("\\boxed{2}"))


def test_a_mixture_whose_members_have_verifiers_of_their_own(pool):
    source = load_tasks("countdown:levels=1,calculus:families=integrate,tool_use(linear:levels=1),rg:gcd")
    pytest.importorskip("reasoning_gym")
    tasks = [source.train(i) for i in range(8)]
    assert {t.family for t in tasks} == {"countdown", "integrate", "linear", "rg:gcd"}

    def answers(prompt, params, number):
        text = "".join(map(chr, prompt))
        return tokens(next(f"\\boxed{{{t.reference}}}" for t in tasks if t.prompt in text))

    for task, (rollout,) in zip(tasks, run(pool, source, answers, tasks, 1), strict=True):
        assert rollout.verdict.is_correct, (task, rollout.verdict)


def test_sympy_is_called_from_an_episode(pool):
    source = load_tasks("tool_use(calculus:families=differentiate)")
    task = Task("t", "Differentiate x^3.", "3x^2", metadata={"source": 0})
    script = [list(map(ord, "<sympy>diff(x^3, x)</sympy>")), tokens("\\boxed{3x^2}")]
    ((rollout,),) = run(pool, source, script, [task], 1)
    text = "".join(map(chr, rollout.token_ids.tolist()))
    assert "<result>3*x**2</result>" in text and rollout.verdict.is_correct
