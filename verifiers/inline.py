"""Verifying in the calling process, for verifiers that declare `in_process`.

No start-up and no copying, and no protection either: a deadline cannot be kept there and a crash takes the
caller along, so it suits code that is trusted and cheap, or that needs what only the caller has.
"""

from __future__ import annotations

from typing import Any

from reasoner.types import Verdict
from verifiers.base import Verifier, describe_exception
from verifiers.worker import Worker


class InlineWorker(Worker):
    """A `Worker` without a process: answers are collected, exceptions become verdicts."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self.answers: list[Any] = []

    def guarded(self, call: Any) -> Any:
        try:
            return call()
        except (Exception, SystemExit) as error:  # a plug-in is a boundary: its failure is one verdict
            return Verdict.error(describe_exception(error))

    def emit(self, kind: str, index: int, verdict: Verdict) -> None:
        self.answers.append(verdict.extracted if kind == "key" else verdict)


def answers_inline(verifier: Verifier, kind: str, completions: list[str], task: Any) -> list[Any]:
    """One answer for each completion, computed in this thread."""
    worker = InlineWorker(verifier)
    worker.answer(kind, completions, task)
    return worker.answers
