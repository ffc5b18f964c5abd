"""Grades stored samples: verdicts, answer classes for votes, every candidate answer on the way, scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from reasoner.errors import UsageError
from reasoner.evaluation.store import EvalStore, Grade, Sample
from reasoner.types import Task, Verdict
from verifiers import Verifier, VerifierPool

CHUNK = 256  # samples graded between two commits


class Grader:
    """Works through samples in killable processes, and records what it finds in the store at once."""

    def __init__(
        self,
        store: EvalStore,
        tasks: Mapping[tuple[str, str], Task],
        pool: VerifierPool,
        scorer: VerifierPool | None,
    ) -> None:
        self._store, self.tasks, self._pool, self._scorer = store, tasks, pool, scorer
        #: such a verifier looks at a task's samples together, so they must all be there first
        self.needs_groups = pool.verifier.batched
        self._has_keys = not _is_default(pool.verifier, "answer_key")

    def grade(self, samples: Sequence[Sample]) -> None:
        """Grades what can be graded one by one, or (`needs_groups`) whole groups. Blocks."""
        groups: dict[Any, list[Sample]] = defaultdict(list)
        for position, sample in enumerate(samples):
            if self.needs_groups:
                groups[(sample.split, sample.task_id, sample.point)].append(sample)
            else:
                groups[position // CHUNK].append(sample)
        for group in groups.values():
            self._store.grade(list(zip(group, self._grades(group), strict=True)))

    def _grades(self, samples: Sequence[Sample]) -> list[Grade]:
        tasks = [self.tasks[s.split, s.task_id] for s in samples]
        completions = [s.completion for s in samples]
        if self.needs_groups:
            verdicts = self._pool.submit_group(completions, tasks[0]).result()
        else:
            verdicts = self._pool.submit_pairs(list(zip(completions, tasks, strict=True))).result()
        keys = self._keys(completions, tasks, verdicts)
        candidates = self._pool.candidates([s.said for s in samples], tasks)
        right = self._candidates_right(candidates, tasks, verdicts)
        scores = self._scores(completions, tasks)
        return [
            Grade(v, key, tuple(said), ok, score)
            for v, key, said, ok, score in zip(verdicts, keys, candidates, right, scores, strict=True)
        ]

    def _keys(
        self, completions: list[str], tasks: list[Task], verdicts: Sequence[Verdict]
    ) -> list[str | None]:
        """The verifier's own classes; else what it extracted, as text."""
        if self._has_keys:
            return self._pool.answer_keys(completions, tasks)
        return [v.extracted.strip() if v.extracted else None for v in verdicts]

    def _candidates_right(
        self, candidates: Sequence[Sequence[str]], tasks: Sequence[Task], verdicts: Sequence[Verdict]
    ) -> list[tuple[bool, ...]]:
        """Whether each candidate is right: that of a lone one is the verdict's business."""
        pairs = [
            (f"\\boxed{{{answer}}}", task)
            for said, task in zip(candidates, tasks, strict=True)
            if len(said) > 1
            for answer in said
        ]
        found = iter(self._pool.submit_pairs(pairs).result() if pairs else [])
        return [
            tuple(next(found).is_correct for _ in said) if len(said) > 1 else (v.is_correct,) * len(said)
            for said, v in zip(candidates, verdicts, strict=True)
        ]

    def _scores(self, completions: list[str], tasks: list[Task]) -> list[float | None]:
        if self._scorer is None:
            return [None] * len(completions)
        verdicts = self._scorer.submit_pairs(list(zip(completions, tasks, strict=True))).result()
        if all(v.status == "error" for v in verdicts):
            raise UsageError(f"the scorer scored nothing: {verdicts[0].detail}")
        return [v.reward for v in verdicts]


def _is_default(verifier: Verifier, method: str) -> bool:
    return (
        getattr(verifier, method).__func__ is getattr(Verifier, method)
        if hasattr(getattr(verifier, method), "__func__")
        else False
    )
