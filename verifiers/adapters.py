"""Our verifiers in other trainers, and other trainers' reward functions here.

- TRL: a *reward function* takes lists and keyword columns and returns one float or None a completion.
- verl: `compute_score(data_source, solution_str, ground_truth, extra_info)` returns one float.
- reasoning-gym: `score_answer(answer, entry)` returns one float; `entry` has question, answer and metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None
    ) -> float:
        prompt = str((extra_info or {}).get("question", ""))
        task = Task(data_source, prompt, _reference(ground_truth))
        reward = pool.verify_group([solution_str], task)[0].reward
        return unscored if reward is None else float(reward)

    return compute_score


def from_trl(function: Callable[..., Sequence[float | None]], column: str = "answer") -> Verifier:
    """A TRL reward function as a verifier (batched: it is called once a group)."""

    def verify(completions: list[str], task: Task) -> list[float | None]:
        columns: dict[str, Any] = {column: [task.references[0]] * len(completions)}
        columns |= {name: [value] * len(completions) for name, value in task.metadata.items()}
        return list(function(completions=completions, prompts=[task.prompt] * len(completions), **columns))

    verify.batched = True  # type: ignore[attr-defined]
    return CallableVerifier(verify, getattr(function, "__name__", "trl"))


def from_verl(function: Callable[..., Any], data_source: str = "reasoner") -> Verifier:
    """A verl `compute_score` as a verifier; a dict result is read at its key `score`."""

    def verify(completion: str, task: Task) -> float:
        extra = dict(task.metadata)
        result = function(data_source, completion, task.references[0], extra)
        return float(result["score"] if isinstance(result, Mapping) else result)

    return CallableVerifier(verify, getattr(function, "__name__", "verl"))


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
