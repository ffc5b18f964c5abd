"""The verifier a run uses unless it is given one: the one that each task names, else `math`.

A task names its verifier in `metadata["verifier"]`, as anything `load_verifier` takes; so one run can mix
families that need different ones. A verifier named so is asked about one completion at a time: rewards that
look at a whole group need `verifier.name`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers.base import Verifier, load_verifier

KEY = "verifier"  # in Task.metadata


class ByTask(Verifier):
    """Asks the verifier that a task names. One that cannot be loaded is an `error` that says so."""

    name = "auto"
    timeout_s = 10.0
    memory_mib = 2048
    timeout_is_answer = True  # what is killed was computing on the answer: our verifiers never wait

    def __init__(self, default: str = "math", expected: tuple[str, ...] = ()) -> None:
        self.default = default
        self.expected = expected
        self._loaded: dict[str, Verifier | str] = {}  # by spec: the verifier, or why there is none

    def prepare(self) -> None:
        """Load what the first verdicts will need: packages that take seconds to import would use up the
        deadline of the first answer."""
        for spec in (self.default, *self.expected):
            verifier = self._load(spec)
            if isinstance(verifier, Verifier) and hasattr(verifier, "prepare"):
                verifier.prepare()

    def verify(self, completion: str, task: Task) -> Verdict:
        verifier = self._of(task)
        if isinstance(verifier, str):
            return Verdict.error(verifier)
        if verifier.batched:
            return verifier.verify_group([completion], task)[0]
        return verifier.verify(completion, task)

    def explain(self, completion: str, task: Task) -> Verdict:
        verifier = self._of(task)
        if isinstance(verifier, str) or not hasattr(verifier, "explain"):
            return self.verify(completion, task)
        return verifier.explain(completion, task)

    def answer_key(self, completion: str, task: Task) -> str | None:
        verifier = self._of(task)
        return None if isinstance(verifier, str) else verifier.answer_key(completion, task)

    def candidates(self, completion: str) -> list[str]:
        default = self._load(self.default)
        return [] if isinstance(default, str) else default.candidates(completion)

    def _of(self, task: Task) -> Verifier | str:
        return self._load(str(task.metadata.get(KEY, self.default)))

    def _load(self, spec: str) -> Verifier | str:
        if spec not in self._loaded:
            try:
                self._loaded[spec] = load_verifier(spec)
            except UsageError as error:
                self._loaded[spec] = str(error)
        return self._loaded[spec]


def expecting(verifier: Any, expected: Iterable[str]) -> Any:
    """`verifier`, and for `auto` one that loads the expected verifiers before the first answer comes."""
    return ByTask(expected=tuple(sorted(expected))) if verifier == "auto" else verifier
