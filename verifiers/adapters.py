"""Our verifiers in other trainers, and other trainers' reward functions here.

- TRL: a *reward function* takes lists and keyword columns and returns one float or None a completion.
- verl: `compute_score(data_source, solution_str, ground_truth, extra_info)` returns one float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reasoner.types import Task
from verifiers.base import CallableVerifier, Verifier
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


def _reference(value: Any) -> str | tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
