"""Verdicts again: every recorded completion through a verifier, next to what was recorded.

With the run's own verifier this checks the rewards a run was trained on; with another one it says what they
would have been. Groups go to the verifier whole, as they did in training. Seconds are not compared, nor the
words of `detail`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from reasoner.config import Config
from reasoner.types import ENVIRONMENT_FAILED, Group, Verdict
from verifiers import VerifierPool

SHOWN_CHARS = 200  # of a completion that is reported


@dataclass(frozen=True)
class Disagreement:
    """One rollout whose reward is not the recorded one. `step` is None where no step has used it yet."""

    step: int | None
    group_index: int
    rollout: int
    task_id: str
    recorded: Verdict
    found: Verdict
    completion: str  # its end

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "group_index": self.group_index,
            "rollout": self.rollout,
            "task_id": self.task_id,
            "recorded": {"status": self.recorded.status, "reward": self.recorded.reward},
            "found": {
                "status": self.found.status,
                "reward": self.found.reward,
                "detail": self.found.detail,
            },
            "completion_end": self.completion,
        }


@dataclass
class Rewards:
    """What was found so far. `confusion` counts (recorded status, found status)."""

    verifiers: list[str] = field(default_factory=list)
    checked: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)
    steps: list[dict[str, Any]] = field(default_factory=list)  # means of each step

    @property
    def contradicted(self) -> list[Disagreement]:
        """The disagreements with a recorded verdict: `error` is none, it says that there was no answer."""
        return [d for d in self.disagreements if d.recorded.status != "error"]

    def add(self, step: int | None, groups: Sequence[Group], found: Sequence[Sequence[Verdict]]) -> None:
        """Compares the verdicts of one step; rollouts that no verifier has judged are left out."""
        pairs = []
        for group, verdicts in zip(groups, found, strict=True):
            for i, (rollout, new) in enumerate(zip(group.rollouts, verdicts, strict=True)):
                old = rollout.verdict
                if old is None or not _was_verified(old):
                    continue
                pairs.append((old, new))
                self.confusion[old.status, new.status] += 1
                if old.reward != new.reward:
                    end = rollout.completion[-SHOWN_CHARS:]
                    self.disagreements.append(
                        Disagreement(step, group.index, i, group.task.id, old, new, end)
                    )
        self.checked += len(pairs)
        self.steps.append(
            {
                "step": step,
                "rollouts": len(pairs),
                "recorded_mean": _mean([old.reward for old, _ in pairs]),
                "found_mean": _mean([new.reward for _, new in pairs]),
                "disagreements": sum(old.reward != new.reward for old, new in pairs),
            }
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "verifiers": self.verifiers,
            "checked": self.checked,
            "disagreements": [d.to_json() for d in self.disagreements],
            "confusion": [
                {"recorded": old, "found": new, "rollouts": n}
                for (old, new), n in sorted(self.confusion.items())
            ],
            "steps": self.steps,
        }


class Judge:
    """Verifies groups in processes of its own: with `verifier`, or with what each configuration names."""

    def __init__(self, verifier: str | Callable[..., Any] | None = None) -> None:
        self.rewards = Rewards()
        self._verifier = verifier
        self._pools: dict[tuple[Any, ...], VerifierPool] = {}
        self._stack = ExitStack()

    def can_judge(self, config: Config) -> bool:
        """False where the run's verifier was a Python object, of which only the name is known."""
        return self._verifier is not None or not config.verifier.name.startswith("<")

    def submit(self, groups: Sequence[Group], config: Config) -> list[Future[list[Verdict]]]:
        """Starts to verify; `UsageError` when the verifier cannot be loaded."""
        pool = self._pool(config)
        return [pool.submit_group([r.completion for r in g.rollouts], g.task) for g in groups]

    def collect(
        self,
        step: int | None,
        groups: Sequence[Group],
        futures: Sequence[Future[list[Verdict]]],
        before: Sequence[Config] = (),
    ) -> None:
        """Waits for the verdicts of `submit` and compares them. A group may have been sampled before a resume
        that changed the verifier, and trained on after it: `before` are the configurations of then."""
        found = [future.result() for future in futures]
        for config in before:
            odd = [i for i, group in enumerate(groups) if _differ(group, found[i])]
            if odd and self._verifier is None and self.can_judge(config):
                again = [future.result() for future in self.submit([groups[i] for i in odd], config)]
                found = [*found]
                for i, verdicts in zip(odd, again, strict=True):
                    found[i] = found[i] if _differ(groups[i], verdicts) else verdicts
        self.rewards.add(step, groups, found)

    def _pool(self, config: Config) -> VerifierPool:
        keys = config.verifier
        spec = keys.name if self._verifier is None else self._verifier
        key = (spec, keys.processes, keys.timeout_s)
        if key not in self._pools:
            pool = VerifierPool(spec, workers=keys.processes, timeout_s=keys.timeout_s or None)
            self._pools[key] = self._stack.enter_context(pool)
            if pool.verifier.name not in self.rewards.verifiers:
                self.rewards.verifiers.append(pool.verifier.name)
        return self._pools[key]

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)


def _differ(group: Group, found: Sequence[Verdict]) -> bool:
    pairs = [(r.verdict, new) for r, new in zip(group.rollouts, found, strict=True)]
    return any(old and _was_verified(old) and old.reward != new.reward for old, new in pairs)


def _was_verified(verdict: Verdict) -> bool:
    return not verdict.detail.startswith(ENVIRONMENT_FAILED)


def _mean(rewards: Sequence[float | None]) -> float | None:
    scored = [r for r in rewards if r is not None]
    return sum(scored) / len(scored) if scored else None
