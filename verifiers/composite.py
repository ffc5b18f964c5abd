"""Several verifiers as one: a weighted mean of their rewards, behind gates that must all be passed.

    graded = Composite({"math": 0.9, "my_module:short": 0.1}, gates=["my_module:no_tables"])

and `--verifier my_module:graded`. When a gate fails, its verdict is the verdict, with reward 0. A part that
says nothing about the policy (`error`, `masked`, `bad_reference`) makes the whole say nothing, and is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reasoner.errors import UsageError
from reasoner.types import UNSCORED, Task, Verdict
from verifiers.base import Verifier, load_verifier


class Composite(Verifier):
    """`weights`: verifier → weight (anything `load_verifier` takes). Correct from `correct_from` on."""

    name = "composite"
    is_async = False

    def __init__(
        self, weights: Mapping[Any, float], gates: Sequence[Any] = (), correct_from: float = 1.0
    ) -> None:
        if not weights or not all(weight > 0 for weight in weights.values()):
            raise UsageError(f"a composite verifier needs parts with positive weights, got {dict(weights)!r}")
        self.parts = [(load_verifier(spec), float(weight)) for spec, weight in weights.items()]
        self.gates = [load_verifier(gate) for gate in gates]
        self.correct_from = correct_from
        every = [*self.gates, *(part for part, _ in self.parts)]
        self.timeout_s = sum(verifier.timeout_s for verifier in every)
        self.memory_mib = max(verifier.memory_mib for verifier in every)
        self.batched = any(verifier.batched for verifier in every)
        self.timeout_is_answer = all(verifier.timeout_is_answer for verifier in every)

    def verify(self, completion: str, task: Task) -> Verdict:
        return self.verify_group([completion], task)[0]

    def verify_group(self, completions: Sequence[str], task: Task) -> list[Verdict]:
        gates = [gate.verify_group(completions, task) for gate in self.gates]
        parts = [part.verify_group(completions, task) for part, _ in self.parts]
        return [
            self._one([column[i] for column in gates], [column[i] for column in parts])
            for i in range(len(completions))
        ]

    def _one(self, gates: Sequence[Verdict], parts: Sequence[Verdict]) -> Verdict:
        for gate, verdict in zip(self.gates, gates, strict=True):
            if verdict.status in UNSCORED:
                return _named(verdict, gate)
            if not verdict.is_correct:
                detail = f"gate {gate.name}: {verdict.detail or verdict.status}"
                return Verdict(verdict.status, 0.0, verdict.extracted, detail)
        total = 0.0
        for (part, weight), verdict in zip(self.parts, parts, strict=True):
            if verdict.reward is None:
                return _named(verdict, part)
            total += weight * verdict.reward
        reward = total / sum(weight for _, weight in self.parts)
        shares = ", ".join(
            f"{part.name} {verdict.reward:g}" for (part, _), verdict in zip(self.parts, parts, strict=True)
        )
        extracted = next((verdict.extracted for verdict in parts if verdict.extracted is not None), None)
        make = Verdict.correct if reward >= self.correct_from - 1e-9 else Verdict.wrong
        return make(extracted, shares, reward)

    def answer_key(self, completion: str, task: Task) -> str | None:
        return self.parts[0][0].answer_key(completion, task)

    def candidates(self, completion: str) -> list[str]:
        return self.parts[0][0].candidates(completion)


def _named(verdict: Verdict, part: Verifier) -> Verdict:
    return Verdict(verdict.status, None, verdict.extracted, f"{part.name}: {verdict.detail}")
