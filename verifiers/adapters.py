"""Our verifiers in other trainers, and other trainers' reward functions here.

- TRL: a *reward function* takes lists and keyword columns and returns one float or None a completion.
- verl: `compute_score(data_source, solution_str, ground_truth, extra_info)` returns one float.
- reasoning-gym: `score_answer(answer, entry)` returns one float; `entry` has question, answer and metadata.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reasoner.types import Task, Verdict
from verifiers.base import CallableVerifier, Verifier, to_verdict
from verifiers.pool import VerifierPool


def completion_text(completion: Any) -> str:
    """The text of a completion that is plain text or chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def for_trl(pool: VerifierPool, reference_column: str = "answer") -> Callable[..., list[float | None]]:
    """A TRL reward function that scores with `pool`. Verdicts that say nothing about the policy are None,
    which TRL leaves out of the reward."""

    def reward(
        completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        if reference_column not in columns:
            raise KeyError(f"the data set has no column {reference_column!r} with reference answers")
        references = columns[reference_column]
        asked = prompts if prompts is not None else [""] * len(completions)
        pairs = [
            (completion_text(c), Task(str(i), completion_text(p), _reference(r)))
            for i, (c, p, r) in enumerate(zip(completions, asked, references, strict=True))
        ]
        return [verdict.reward for verdict in pool.submit_pairs(pairs).result()]

    reward.__name__ = f"reasoner_{pool.verifier.name}"
    return reward


def for_verl(pool: VerifierPool, unscored: float = 0.0) -> Callable[..., float]:
    """A verl `compute_score` that scores with `pool`. verl has no way to leave a rollout out: verdicts that
    say nothing about the policy score `unscored`."""

    def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,  # verl adds the address of a reward model where it runs one
    ) -> float:
        prompt = str((extra_info or {}).get("question", ""))
        task = Task(data_source, prompt, _reference(ground_truth))
        reward = pool.verify_group([solution_str], task)[0].reward
        return unscored if reward is None else float(reward)

    return compute_score


def from_trl(
    function: Callable[..., Any],
    column: str = "answer",
    *,
    chat: bool | None = None,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> Verifier:
    """A TRL reward function, async or not, as a verifier (batched: it is called once a group).

    It gets what TRL's trainer passes: `prompts`, `completions`, the task's first reference as `column`, and
    the task's metadata as further columns. `chat` says whether prompts and completions are messages (TRL's
    own rewards expect them; None: as the task's prompt is). Functions that look at `completion_ids` need
    `encode`, such as a tokenizer's method of that name."""

    def verify(completions: list[str], task: Task) -> Any:
        columns: dict[str, Any] = {**task.metadata, column: task.references[0]}
        given = {name: [value] * len(completions) for name, value in columns.items()}
        prompt: Any = task.prompt
        said: list[Any] = list(completions)
        if not isinstance(prompt, str) if chat is None else chat:
            prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            said = [[{"role": "assistant", "content": completion}] for completion in completions]
        if encode is not None:
            given["completion_ids"] = [list(encode(completion)) for completion in completions]
        return function(prompts=[prompt] * len(completions), completions=said, **given)

    verify.batched = True  # type: ignore[attr-defined]
    return CallableVerifier(verify, getattr(function, "__name__", "trl"))


def from_verl(function: Callable[..., Any], data_source: str = "reasoner") -> Verifier:
    """A verl `compute_score`, async or not, as a verifier, called by keywords as verl does. The task's first
    reference is the ground truth; a dict result is read at its key `score`."""

    def verify(completion: str, task: Task) -> Any:
        result = function(
            data_source=data_source,
            solution_str=completion,
            ground_truth=task.references[0],
            extra_info=dict(task.metadata),
        )
        return _awaited_score(result) if inspect.isawaitable(result) else _score(result)

    return CallableVerifier(verify, getattr(function, "__name__", "verl"))


async def _awaited_score(result: Awaitable[Any]) -> Any:
    return _score(await result)


def _score(result: Any) -> Any:
    return result["score"] if isinstance(result, Mapping) else result


def for_reasoning_gym(
    pool: VerifierPool, unscored: float = 0.0
) -> Callable[[str | None, Mapping[str, Any]], float]:
    """A reasoning-gym `score_answer` that scores with `pool`; a missing answer scores 0."""

    def score_answer(answer: str | None, entry: Mapping[str, Any]) -> float:
        if answer is None:
            return 0.0
        task = Task("entry", str(entry["question"]), _reference(entry["answer"]), metadata=entry["metadata"])
        reward = pool.verify_group([answer], task)[0].reward
        return unscored if reward is None else float(reward)

    return score_answer


def from_reasoning_gym(score_answer: Callable[[str, dict[str, Any]], float], name: str = "") -> Verifier:
    """A `score_answer` (a bound method of a dataset of your own) as a verifier. Its entry is made of
    the task (prompt, first reference, metadata); the answer stands in `<answer>` tags or is the final one."""
    from verifiers.reasoning_gym import answer_of

    def verify(completion: str, task: Task) -> Verdict:
        answer = answer_of(completion)
        if answer is None:
            return Verdict.unparsed("no answer in <answer> tags, a box or a final statement")
        entry = {"question": task.prompt, "answer": task.references[0], "metadata": dict(task.metadata)}
        verdict = to_verdict(score_answer(answer, entry))
        return replace(verdict, extracted=answer)

    return CallableVerifier(verify, name or getattr(score_answer, "__qualname__", "score_answer"))


def _reference(value: Any) -> str | tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
