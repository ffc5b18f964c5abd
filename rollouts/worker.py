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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from envs.tasks import TaskSource, chat_messages, render_prompt, source_of
from reasoner.errors import ServerError
from reasoner.types import NO_VERSION, Completion, Group, Rollout, SamplingParams, Task
from rollouts.sampler import Sampler
from verifiers import VerifierPool


@dataclass(frozen=True)
class GroupResult:
    """A verified group and the seconds its verification took after sampling."""

    group: Group
    verify_seconds: float


@dataclass
class _Episode:
    """One rollout being made: per-token lists, extended turn by turn."""

    task: Task
    env: Any
    token_ids: list[int]
    action_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    actions: int = 0
    completion: str = ""
    terminated: bool = False
    truncated: bool = False

    def __post_init__(self) -> None:
        self._pad()

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
        self._pad()

    def _pad(self) -> None:
        new = len(self.token_ids) - len(self.action_mask)
        self.action_mask.extend([False] * new)
        self.logprobs.extend([0.0] * new)
        self.versions.extend([NO_VERSION] * new)

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
        """`run` without the verdicts."""
        episodes = [self._begin(task) for task in tasks for _ in range(group_size)]
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

    def _begin(self, task: Task) -> _Episode:
        env = self.source.env(task)
        observation, _ = env.reset(options={"task": task})
        return _Episode(task, env, self.prompt_ids(task, observation))

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
        """One action of every live episode: one request for all that have the same budget left."""
        by_budget: dict[int, list[_Episode]] = defaultdict(list)
        for episode in live:
            room = self.context_tokens - len(episode.token_ids)
            by_budget[min(params.max_tokens - episode.actions, room)].append(episode)
        if min(by_budget) < 1 and not all(e.actions for e in by_budget[min(by_budget)]):
            raise ServerError(
                f"a prompt fills the context of {self.context_tokens} tokens: raise server.context_tokens"
            )
        await asyncio.gather(
            *(
                self._act(sampler, episodes, replace(params, max_tokens=n))
                for n, episodes in by_budget.items()
            )
        )

    async def _act(self, sampler: Sampler, episodes: Sequence[_Episode], params: SamplingParams) -> None:
        if params.max_tokens < 1:  # the budget ended with the last turn
            for episode in episodes:
                self._finish(episode, truncated=True)
            return
        completions = await sampler.generate([e.token_ids for e in episodes], params)
        for episode, completion in zip(episodes, completions, strict=True):
            episode.act(completion)
            text = self.tokenizer.decode(completion.token_ids.tolist(), skip_special_tokens=True)
            observation, _, terminated, truncated, info = episode.env.step(text)
            episode.completion = info.get("completion", text)
            if completion.finish_reason == "length":
                self._finish(episode, truncated=True)
            elif terminated or truncated:
                self._finish(episode, truncated)
            else:
                episode.observe(self.tokenizer.encode(observation, add_special_tokens=False))

    def _finish(self, episode: _Episode, truncated: bool) -> None:
        episode.terminated, episode.truncated = not truncated, truncated
        episode.env.close()

    async def _verify(self, group: Group) -> tuple[Group, float]:
        started = time.monotonic()
        future = self.verifiers.submit_group([r.completion for r in group.rollouts], group.task)
        verdicts = await asyncio.wrap_future(future)
        rollouts = tuple(r.with_verdict(v) for r, v in zip(group.rollouts, verdicts, strict=True))
        return replace(group, rollouts=rollouts), time.monotonic() - started


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
