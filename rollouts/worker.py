"""A Ray worker: runs the episodes of a group together, has them verified, and returns the group.

One environment an episode, all episodes of a call side by side: each turn is one batched request to a
server, token ids in and token ids out. Observations are deltas and are appended as tokens; nothing that
was sampled is ever re-tokenised. A group goes to the verifier as a whole, so batched and group-relative
rewards work. Nothing here knows about policies' weights or the learner.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from envs.tasks import TaskSource, chat_messages, render_prompt, source_of
from reasoner.errors import ReasonerError, ServerError, UsageError
from reasoner.types import (
    ENVIRONMENT_FAILED,
    NO_VERSION,
    Completion,
    Group,
    Rollout,
    SamplingParams,
    Task,
    Verdict,
)
from rollouts.packing import PackedGroup, pack_group
from rollouts.sampler import Sampler
from verifiers import VerifierPool
from verifiers.base import describe_exception


@dataclass(frozen=True)
class GroupResult:
    """A verified group and the seconds its verification took after sampling."""

    group: Group
    verify_seconds: float

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes a group travels packed: four arrays, not four a rollout."""
        return _unpacked, (pack_group(self.group), self.verify_seconds)


def _unpacked(packed: PackedGroup, verify_seconds: float) -> GroupResult:
    return GroupResult(packed.unpack(), verify_seconds)


@dataclass
class _Episode:
    """One rollout being made: per-token lists, extended turn by turn. `failure`: its environment raised."""

    task: Task
    env: Any = None
    token_ids: list[int] = field(default_factory=list)
    action_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    actions: int = 0
    completion: str = ""
    terminated: bool = False
    truncated: bool = False
    failure: Verdict | None = None

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated

    def act(self, completion: Completion) -> None:
        self.token_ids.extend(completion.token_ids.tolist())
        self.action_mask.extend([True] * len(completion.token_ids))
        self.logprobs.extend(completion.behaviour_logprobs.tolist())
        self.versions.extend(completion.policy_version.tolist())
        self.actions += len(completion.token_ids)

    def observe(self, token_ids: Sequence[int]) -> None:
        self.token_ids.extend(token_ids)
        self.action_mask.extend([False] * len(token_ids))
        self.logprobs.extend([0.0] * len(token_ids))
        self.versions.extend([NO_VERSION] * len(token_ids))

    def rollout(self) -> Rollout:
        return Rollout(
            task=self.task,
            token_ids=np.asarray(self.token_ids, np.int32),
            action_mask=np.asarray(self.action_mask, bool),
            behaviour_logprobs=np.asarray(self.logprobs, np.float32),
            policy_version=np.asarray(self.versions, np.int32),
            completion=self.completion,
            terminated=self.terminated,
            truncated=self.truncated,
            verdict=self.failure,
        )


class RolloutWorker:
    """Wrapped by `ray.remote` in the loop; plain here, so that unit tests run it with a scripted sampler."""

    def __init__(
        self,
        tokenizer: Any,
        source: TaskSource,
        template: str,
        verifier_pool: VerifierPool,
        context_tokens: int,
    ):
        self.tokenizer = tokenizer
        self.source = source
        self.template = template
        self.verifiers = verifier_pool
        self.context_tokens = context_tokens

    async def run(
        self,
        tasks: Sequence[Task],
        group_size: int,
        params: SamplingParams,
        first_index: int,
        sampler: Sampler,
    ) -> list[GroupResult]:
        """`group_size` verified rollouts of every task, all from this one server (prefix cache).

        Raises ServerError when the server fails or a prompt does not fit the context."""
        groups = await self.sample(tasks, group_size, params, first_index, sampler)
        verified = await asyncio.gather(*(self._verify(group) for group in groups))
        return [GroupResult(group, seconds) for group, seconds in verified]

    async def sample(
        self,
        tasks: Sequence[Task],
        group_size: int,
        params: SamplingParams,
        first_index: int,
        sampler: Sampler,
    ) -> list[Group]:
        """`run` without the verdicts, but for those of environments that failed."""
        prompts: list[dict[str, list[int]]] = [{} for _ in tasks]
        begun = (
            self._begin(task, known)
            for task, known in zip(tasks, prompts, strict=True)
            for _ in range(group_size)
        )
        episodes = await asyncio.gather(*begun)
        while live := [e for e in episodes if not e.done]:
            await self._turn(sampler, live, params)
        return [
            Group(
                task,
                tuple(e.rollout() for e in episodes[i * group_size : (i + 1) * group_size]),
                first_index + i,
            )
            for i, task in enumerate(tasks)
        ]

    async def _begin(self, task: Task, known: dict[str, list[int]]) -> _Episode:
        """An episode with its first observation; `known` are those of its task that are tokens already."""
        episode = _Episode(task)
        observation = task.prompt if isinstance(task.prompt, str) else task.prompt[-1]["content"]
        with _named("the environment", task):
            episode.env = self.source.env(task)
        with _tolerated("begin", episode):
            options = {"task": task, "verify": self._verify_one}
            observation = _text((await _call(episode.env, "reset", options=options))[0], episode.env)
        if observation not in known:
            known[observation] = self.prompt_ids(task, observation)
        episode.observe(known[observation])
        if episode.failure:
            await self._finish(episode, truncated=False)
        return episode

    def prompt_ids(self, task: Task, observation: str) -> list[int]:
        """The first observation as tokens: through the chat template, or as text for a base model."""
        source = source_of(self.source, task)
        if self.template == "chat":
            messages = chat_messages(task, observation, source)
            return list(
                self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            )
        template = source.base_template if self.template == "base" else self.template
        return list(self.tokenizer.encode(render_prompt(observation, template)))

    async def _turn(self, sampler: Sampler, live: Sequence[_Episode], params: SamplingParams) -> None:
        """One action of every live episode: one request for all with the same budget and stop texts."""
        alike: dict[tuple[int, tuple[str, ...]], list[_Episode]] = defaultdict(list)
        for episode in live:
            budget = min(params.max_tokens - episode.actions, self.context_tokens - len(episode.token_ids))
            if budget < 1 and not episode.actions:
                raise ServerError(
                    f"the prompt of task {episode.task.id} has {len(episode.token_ids)} tokens and fills the "
                    f"context of {self.context_tokens}: raise server.context_tokens"
                )
            alike[budget, getattr(episode.env.unwrapped, "stop", ())].append(episode)
        await asyncio.gather(
            *(
                self._act(sampler, episodes, replace(params, max_tokens=n, stop=(*params.stop, *stop)))
                for (n, stop), episodes in alike.items()
            )
        )

    async def _act(self, sampler: Sampler, episodes: Sequence[_Episode], params: SamplingParams) -> None:
        if params.max_tokens < 1:  # the budget ended with the last turn
            await asyncio.gather(*(self._finish(episode, truncated=True) for episode in episodes))
            return
        completions = await sampler.generate([e.token_ids for e in episodes], params)
        pairs = list(zip(episodes, completions, strict=True))
        for episode, completion in pairs:
            episode.act(completion)
        steps = await asyncio.gather(*(self._step(e, c.token_ids.tolist()) for e, c in pairs))
        over = []
        for (episode, completion), (observation, ended, cut) in zip(pairs, steps, strict=True):
            if completion.finish_reason == "length":
                over.append(self._finish(episode, truncated=True))
            elif ended or cut or episode.failure:
                over.append(self._finish(episode, cut))
            else:
                episode.observe(self._observation_ids(completion, observation))
        await asyncio.gather(*over)

    async def _step(self, episode: _Episode, token_ids: list[int]) -> tuple[str, bool, bool]:
        """(observation, terminated, truncated) for what was sampled."""
        episode.completion = text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        env, answer = episode.env, ("", False, False)
        with _tolerated("respond", episode):
            observation, _, terminated, truncated, info = await _call(env, "step", text)
            episode.completion = info.get("completion", text)
            answer = _text(observation, env), terminated, truncated
        return answer

    def _observation_ids(self, completion: Completion, observation: str) -> list[int]:
        """An observation as tokens to append. After a chat model's end of turn it is a turn of the user's; in
        the middle of an answer (at a stop text), and for base models, it is text."""
        end = getattr(self.tokenizer, "eos_token_id", None)
        if self.template == "chat" and len(completion.token_ids) and completion.token_ids[-1] == end:
            observation = _as_turn(self.tokenizer, observation)
        return list(self.tokenizer.encode(observation, add_special_tokens=False))

    def _verify_one(self, completion: str, task: Task) -> Verdict:
        """The verdict on one completion, for an environment that shows it. It must run in a thread."""
        return self.verifiers.submit_group([completion], task).result()[0]

    async def _finish(self, episode: _Episode, truncated: bool) -> None:
        episode.terminated, episode.truncated = not truncated, truncated
        with _tolerated("close", episode):
            await _call(episode.env, "close")

    async def _verify(self, group: Group) -> tuple[Group, float]:
        started = time.monotonic()
        sound = [r for r in group.rollouts if r.verdict is None]
        if sound:
            future = self.verifiers.submit_group([r.completion for r in sound], group.task)
            verdicts = await asyncio.wrap_future(future)
            found = iter(verdicts)
            judged = (r if r.verdict else r.with_verdict(next(found)) for r in group.rollouts)
            group = replace(group, rollouts=tuple(judged))
        return group, time.monotonic() - started


async def _call(env: Any, method: str, *given: Any, **options: Any) -> Any:
    """A method of an environment, in a thread where it may take long."""
    if getattr(env.unwrapped, "blocking", False):
        return await asyncio.to_thread(getattr(env, method), *given, **options)
    return getattr(env, method)(*given, **options)


def _as_turn(tokenizer: Any, observation: str) -> str:
    """What the chat template puts after a turn of the assistant's that has ended: a user's turn with the
    observation, and the beginning of the assistant's next one."""
    mark = "\N{OBJECT REPLACEMENT CHARACTER}turn"
    messages = [
        {"role": "user", "content": "."},
        {"role": "assistant", "content": mark},
        {"role": "user", "content": observation},
    ]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return whole.rpartition(mark)[2].removeprefix(tokenizer.eos_token)


def _text(observation: Any, env: Any) -> str:
    if not isinstance(observation, str):
        raise UsageError(
            f"the environment {type(env.unwrapped).__name__} gave an observation of type "
            f"{type(observation).__name__}: a text environment gives str"
        )
    return observation


@contextmanager
def _named(method: str, task: Task) -> Iterator[None]:
    """An environment is somebody's own code: what it raises names the method, the task and the line."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"task {task.id}: {error}") from error
    except ReasonerError:
        raise
    except Exception as error:
        raise ReasonerError(f"{method} failed on task {task.id}: {describe_exception(error)}") from error


@contextmanager
def _tolerated(method: str, episode: _Episode) -> Iterator[None]:
    """`_named`, but where the environment says `on_error = "mask"` its failure is the rollout's verdict."""
    env = episode.env.unwrapped
    method = f"{type(env).__name__}.{method}"
    try:
        with _named(method, episode.task):
            yield
    except ReasonerError as error:
        if getattr(env, "on_error", "stop") != "mask":
            raise
        why = describe_exception(error.__cause__ or error)
        failure = Verdict.error(f"{ENVIRONMENT_FAILED}{method}: {why}, on task {episode.task.id}")
        episode.failure = episode.failure or failure


def build_worker(
    model_path: str,
    source: TaskSource,
    template: str,
    verifier_pool: VerifierPool,
    context_tokens: int,
) -> RolloutWorker:
    """A worker with the model's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    return RolloutWorker(tokenizer, source, template, verifier_pool, context_tokens)
