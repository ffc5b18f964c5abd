"""First version: integers and plain fractions and decimals."""

from __future__ import annotations

import re
from fractions import Fraction

from reasoner.types import Task, Verdict
from verifiers.base import Verifier
from verifiers.extract import candidates, extract

_NUM = re.compile(
    r"[+-]?(\d{1,300}|\d{1,3}(,\d{3})+)(\.\d{1,300})?|[+-]?\.\d{1,300}|[+-]?\d{1,300}/\d{1,300}"
)


def _number(text: str):
    text = text.strip().strip("$").strip().rstrip(".")
    if not _NUM.fullmatch(text):
        return None
    try:
        return Fraction(text.replace(",", ""))
    except ZeroDivisionError:
        return None


class MathVerifier(Verifier):
    name = "math"
    timeout_s = 5.0
    memory_mib = 1024
    timeout_is_answer = True

    def verify(self, completion: str, task: Task) -> Verdict:
        answer = extract(completion).answer
        if answer is None:
            return Verdict.unparsed("no final answer")
        value = _number(answer)
        readable = False
        for reference in task.references:
            want = _number(reference)
            readable = readable or bool(reference.strip())
            if value is not None and want is not None and value == want:
                return Verdict.correct(answer, "equal numbers")
            if want is None and reference.strip() and answer.strip() == reference.strip():
                return Verdict.correct(answer, "same text")
        if not readable:
            return Verdict("bad_reference", None, answer, "empty reference")
        if value is None and _number(task.references[0]) is not None:
            return Verdict.unparsed(f"not a number: {answer[:80]}")
        return Verdict.wrong(answer)

    def answer_key(self, completion: str, task: Task) -> str | None:
        answer = extract(completion).answer
        if answer is None:
            return None
        value = _number(answer)
        return str(value) if value is not None else answer.strip().lower()

    def candidates(self, completion: str) -> list[str]:
        return candidates(completion)
