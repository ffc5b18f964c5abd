"""Checks of a verifier against tasks, before training starts: every reference answer must score as
correct, and answers changed a little must not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reasoner.types import Task, Verdict
from verifiers.base import Verifier
from verifiers.pool import VerifierPool

SHOWN = 5
_RELATION = re.compile(r"[<>=≤≥]|\\(?:le|ge|lt|gt|ne|in|cup|approx)")


@dataclass(frozen=True)
class Finding:
    """One task that the verifier gets wrong, and how."""

    task_id: str
    kind: str  # "bad reference" | "reference rejected" | "perturbed accepted" | "error"
    completion: str
    verdict: Verdict


@dataclass(frozen=True)
class Validation:
    """What `validate` found; `ok` when nothing was found."""

    tasks: int
    perturbed: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.findings

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"{self.tasks} tasks, {self.perturbed} perturbed answers, {len(self.findings)} problems"]
        for f in self.findings[:SHOWN]:
            lines.append(f"  task {f.task_id}: {f.kind}: {f.completion[:80]!r}: {f.verdict.detail[:120]}")
        if len(self.findings) > SHOWN:
            lines.append(f"  … and {len(self.findings) - SHOWN} more")
        return "\n".join(lines)


def boxed(answer: str) -> str:
    """A completion that states `answer`."""
    return answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"


def perturb(reference: str) -> list[str]:
    """Answers near `reference` that are wrong: its last number changed by one, its sign, a hedge."""
    wrong = []
    numbers = list(re.finditer(r"\d+", reference))
    if numbers:
        last = numbers[-1]
        changed = str(int(last.group()) + 1)
        wrong.append(reference[: last.start()] + changed + reference[last.end() :])
        if not _RELATION.search(reference):  # "x > 5 or x > 6" is x > 5
            wrong.append(f"{reference} \\text{{ or }} {wrong[0]}")
    return wrong


def validate(
    tasks: Iterable[Task],
    verifier: str | Callable[..., Any] | Verifier = "math",
    answer: Callable[[str], str] = boxed,
    perturbed: Callable[[str], Sequence[str]] = perturb,
    workers: int = 1,
) -> Validation:
    """Verify each task's own reference answers (`answer(reference)` is the completion) and perturbed ones.

    A reference must be correct; a perturbed answer must not be. Verdicts `error` and `bad_reference` are
    findings as well. `masked` verdicts are neither here nor there.
    """
    findings: list[Finding] = []
    count = tried = 0
    with VerifierPool(verifier, workers) as pool:
        for task in tasks:
            count += 1
            good = [answer(reference) for reference in task.references]
            near = [text for text in perturbed(task.references[0]) if text not in task.references]
            bad = [answer(text) for text in near]
            tried += len(bad)
            for index, verdict in enumerate(pool.verify_group(good + bad, task)):
                kind = _problem(verdict, index < len(good))
                if kind:
                    findings.append(Finding(task.id, kind, (good + bad)[index], verdict))
    return Validation(count, tried, tuple(findings))


def _problem(verdict: Verdict, is_reference: bool) -> str:
    if verdict.status == "bad_reference":
        return "bad reference"
    if verdict.status == "error":
        return "error"
    if is_reference and verdict.status != "masked" and not verdict.is_correct:
        return "reference rejected"
    if not is_reference and verdict.is_correct:
        return "perturbed accepted"
    return ""
