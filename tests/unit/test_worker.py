"""The worker with a scripted sampler: what it sends, what it appends, what it leaves alone."""

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from envs.base import TextEnv
from envs.tasks import load_tasks
from reasoner.alarms import Unjudged
from reasoner.errors import ReasonerError, ServerError, UsageError
from reasoner.evaluation.generate import LocalGenerator
from reasoner.types import SamplingParams, Task, Verdict
from rollouts.queue import RolloutQueue
from rollouts.scripted import ScriptedSampler
from rollouts.worker import RolloutWorker

END = 0


class Letters:
    """A tokenizer of one token a character; token 0 is the end."""

    def encode(self, text, add_special_tokens=True):
        return [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids if i != END)


class Grader:
    """In place of the verifier pool: right is what ends in the reference."""

    def __init__(self):
        self.groups = []

    def submit_group(self, completions, task):
        self.groups.append(list(completions))
        future = Future()
        future.set_result(
            [Verdict.correct() if c.endswith(task.reference) else Verdict.wrong() for c in completions]
        )
        return future


def tokens(text):
    return [*(ord(c) for c in text), END]


def worker(script, source=None, context=64):
    sampler, grader = ScriptedSampler(script, version=3), Grader()
    source = source or load_tasks("arithmetic", 0)
    return (RolloutWorker(Letters(), source, "base", grader, context), sampler), sampler, grader


def run(subject, tasks, group_size=2, max_tokens=8):
    worker, sampler = subject
    return asyncio.run(worker.run(tasks, group_size, SamplingParams(max_tokens), 7, sampler))


def test_a_group_is_sampled_in_one_request_and_verified_together():
    subject, sampler, grader = worker([tokens("2"), tokens("33")])
    (result,) = run(subject, [Task("t", "1+1", "2")])
    assert len(sampler.requests) == 1 and len(sampler.requests[0][0]) == 2
    assert grader.groups == [["2", "33"]]
    first, second = result.group.rollouts
    assert result.group.index == 7
    prompt = len("1+1=?\n")
    assert first.action_mask.tolist() == [False] * prompt + [True] * 2, "the end token is an action too"
    assert first.behaviour_logprobs.tolist() == [0.0] * prompt + [-1.0] * 2
    assert first.policy_version.tolist() == [-1] * prompt + [3] * 2
    assert [r.verdict.status for r in (first, second)] == ["correct", "wrong"]
    assert first.terminated and not first.truncated


def test_the_prompt_of_a_group_becomes_tokens_once(monkeypatch):
    asked = []
    encode = Letters.encode
    monkeypatch.setattr(Letters, "encode", lambda self, text: asked.append(text) or encode(self, text))
    subject, sampler, _ = worker([tokens("2")])
    run(subject, [Task("t", "1+1", "2"), Task("u", "1+1", "2")], group_size=4)
    assert asked == ["1+1=?\n"] * 2
    sent = [prompt for prompts, _ in sampler.requests for prompt in prompts]
    assert len(sent) == 8 and len({id(prompt) for prompt in sent}) == 8, "each episode has its own"


def test_a_completion_cut_by_the_budget_is_truncated_and_still_graded():
    subject, _, grader = worker([tokens("123456789")])
    (result,) = run(subject, [Task("t", "1", "1")], group_size=1, max_tokens=4)
    rollout = result.group.rollouts[0]
    assert rollout.truncated and not rollout.terminated
    assert rollout.num_action_tokens == 4 and grader.groups == [["1234"]]


def test_the_context_bounds_the_budget_and_a_full_one_is_an_error():
    subject, sampler, _ = worker([tokens("12345678")], context=10)
    run(subject, [Task("t", "1", "1")], group_size=1)
    assert sampler.requests[0][1].max_tokens == 6  # "1=?\n" has four tokens
    subject, _, _ = worker([tokens("1")], context=4)
    with pytest.raises(ServerError, match="context"):
        run(subject, [Task("t", "1", "1")])


class TwoTurns(TextEnv):
    """Answers every first action with "?" and takes the second as final."""

    def __init__(self, task):
        super().__init__()
        self.task, self.turns = task, 0

    def begin(self, task):
        self.turns = 0
        return task or self.task, self.task.prompt

    def respond(self, action):
        self.turns += 1
        return ("", True, False, action) if self.turns == 2 else ("?", False, False, None)


class TwoTurnTasks:
    name, finite, base_template, chat_template = "two", False, "{prompt}", "{prompt}"

    def env(self, task):
        return TwoTurns(task)


def test_observations_are_appended_as_tokens_and_never_as_actions():
    subject, sampler, grader = worker([tokens("a"), tokens("b")], TwoTurnTasks())
    (result,) = run(subject, [Task("t", "p", "b")], group_size=1)
    rollout = result.group.rollouts[0]
    assert rollout.token_ids.tolist() == [*map(ord, "p"), *tokens("a"), *map(ord, "?"), *tokens("b")]
    assert rollout.action_mask.tolist() == [False, True, True, False, True, True]
    assert sampler.requests[1][0] == [rollout.token_ids[:4].tolist()], "what was sampled goes back as it was"
    assert sampler.requests[1][1].max_tokens == 6, "the budget is the episode's"
    assert grader.groups == [["b"]]
    assert np.array_equal(rollout.policy_version, [-1, 3, 3, -1, 3, 3])


def test_several_tasks_in_one_call_keep_their_order():
    subject, sampler, _ = worker([tokens("1"), tokens("2"), tokens("3"), tokens("4")])
    results = run(subject, [Task("a", "1", "1"), Task("b", "2", "3")])
    assert [[r.completion for r in x.group.rollouts] for x in results] == [["1", "2"], ["3", "4"]]
    assert [x.group.index for x in results] == [7, 8]
    assert len(sampler.requests) == 1


def test_a_dead_server_is_an_error_not_an_empty_group():
    subject, sampler, _ = worker([tokens("1")])
    sampler.die("gone")
    with pytest.raises(ServerError, match="gone"):
        run(subject, [Task("t", "1", "1")])


class Fragile(TextEnv):
    """Fails where its task says; what it is asked is remembered with the thread that asks."""

    def __init__(self, task):
        super().__init__()
        self.given, self.threads = task, []

    def begin(self, task):
        self.threads.append(threading.current_thread())
        self._fail("begin")
        return task, task.prompt

    def respond(self, action):
        self.threads.append(threading.current_thread())
        self._fail("respond")
        return "", True, False, action

    def close(self):
        self.threads.append(threading.current_thread())
        self._fail("close")

    def _fail(self, method):
        if self.given.metadata.get("fails") == method:
            raise ZeroDivisionError("by nought")


class Forgiving(Fragile):
    on_error = "mask"


class Waiting(Fragile):
    blocking = True


class Made(TwoTurnTasks):
    """Every task in a new environment of one class."""

    def __init__(self, make):
        self.make, self.made = make, []

    def env(self, task):
        self.made.append(self.make(task))
        return self.made[-1]


def failing(method, name="t"):
    return Task(name, "p", "b", metadata={"fails": method})


@pytest.mark.parametrize("method", ["begin", "respond", "close"])
def test_an_environment_that_raises_stops_the_run_and_is_named(method):
    subject, _, _ = worker([tokens("b")], Made(Fragile))
    with pytest.raises(
        ReasonerError, match=f"Fragile.{method} failed on task t: ZeroDivisionError: by nought"
    ):
        run(subject, [failing(method)], group_size=1)


@pytest.mark.parametrize("method", ["begin", "respond", "close"])
def test_or_leaves_its_rollouts_out_where_it_says_so(method):
    subject, _, grader = worker([tokens("b"), tokens("b")], Made(Forgiving))
    results = run(subject, [failing(method), failing(None, "u"), failing(method, "v")], group_size=1)
    masked, sound, other = (result.group.rollouts[0] for result in results)
    assert sound.verdict.is_correct and grader.groups == [["b"]]
    assert masked.verdict.status == other.verdict.status == "error" and masked.reward is None
    assert masked.verdict.detail.startswith(
        f"the environment failed: Forgiving.{method}: ZeroDivisionError: by nought"
    )
    assert masked.num_action_tokens == (0 if method == "begin" else 2)
    assert masked.action_mask.tolist()[0] is False and masked.completion == ("" if method == "begin" else "b")
    said = Unjudged().watch([result.group for result in results])
    assert len(said) == 1 and said[0].startswith("2 of 3 rollouts could not be judged")


@pytest.mark.parametrize("method", ["begin", "respond"])
def test_an_evaluation_stops_there(method):
    sampler, source = ScriptedSampler([tokens("b")]), Made(Forgiving)
    generator = LocalGenerator([sampler], Letters(), source, "base", 64, 1, [END])
    with pytest.raises(ReasonerError, match=f"the environment failed: Forgiving.{method}: ZeroDivisionError"):
        asyncio.run(generator.chain(failing(method), 0, SamplingParams(8)))


def test_what_never_began_does_not_age_its_group():
    subject, _, _ = worker([tokens("b")], Made(Forgiving))
    (result,) = run(subject, [failing("begin")], group_size=2)
    queue = RolloutQueue(groups_per_step=1, max_staleness=1, max_concurrent=1, version=7, serving=7)
    queue.queued.append(result.group)
    assert queue.take_batch() == ([result.group], [])
    sampled = replace(rollout_of("b"), policy_version=np.array([-1, 6, 6]))
    assert replace(result.group, rollouts=(*result.group.rollouts, sampled)).oldest_version == 6


def rollout_of(text):
    subject, _, _ = worker([tokens(text)], Made(Fragile))
    return run(subject, [failing(None)], group_size=1)[0].group.rollouts[0]


def test_an_environment_that_may_wait_waits_in_a_thread():
    for kind, elsewhere in ((Waiting, True), (Fragile, False)):
        source = Made(kind)
        subject, _, _ = worker([tokens("b")], source)
        run(subject, [failing(None)], group_size=1)
        assert [t is not threading.main_thread() for t in source.made[0].threads] == [elsewhere] * 3


def test_an_environment_can_only_stop_or_mask():
    class Shrugging(Fragile):
        on_error = "ignore"

    with pytest.raises(UsageError, match='Shrugging.on_error is "stop" or "mask", not \'ignore\''):
        Shrugging(failing(None))
