"""The mathematical verifier: is the final answer of a completion the reference?

Extraction (`verifiers.extract`), a grammar (`verifiers.parser`), typed comparison
(`verifiers.compare`). Text never becomes code, and every comparison has a budget of operations, so that
the same answer gets the same verdict on a loaded machine. The rules, with examples, are in
docs/verifiers.md.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from reasoner.types import Task, Verdict
from verifiers.base import Verifier
from verifiers.budget import MAX_OPERATIONS, Budget, TooExpensive, Undefined
from verifiers.extract import candidates, extract
from verifiers.nodes import Node, Opaque, Seq, Text, rewrite, show, walk
from verifiers.text import Unreadable, clean, words

_INTEGER = re.compile(r"[+-]?\d{1,400}")
_SMALL_DECIMAL_COMMA = re.compile(r"-?0,\d+")
_DECIMAL_COMMA = re.compile(r"-?(?:0,\d+|\d+,\d{1,2}|\d+,\d{4,})")
_MATHLIKE = re.compile(r"[\\^_=<>+*/{}]")
_PERCENT_ASKED = re.compile(r"percent|per cent|%", re.IGNORECASE)
_CACHED_REFERENCES = 4096


@dataclass(frozen=True)
class Reading:
    """A text and how it was read: the tree, or why there is none."""

    text: str
    tree: Node | None
    other: Node | None = None  # with commas between digits read the other way
    problem: str = ""


def read(text: str, stated: bool = False) -> Reading:
    """The reading of one answer text. With `stated` (not a reference) `2,5` may be a decimal as well as a
    list."""
    from verifiers.reading import parse_clean

    try:
        cleaned = clean(text)
    except Unreadable as error:
        return Reading(text, None, None, str(error))
    trees: list[Node] = []
    problem = ""
    ambiguous = re.search(r"\d,\d{3}(?!\d)", cleaned) and not re.search(r",0\d", cleaned)
    for commas in (True, False) if ambiguous else (True,):
        try:
            tree = parse_clean(cleaned, commas)
            if tree not in trees:
                trees.append(tree)
        except Unreadable as error:
            problem = problem or str(error)
        except RecursionError:
            problem = "nested too deeply"
    if (_DECIMAL_COMMA if stated else _SMALL_DECIMAL_COMMA).fullmatch(cleaned.strip().strip("$")):
        trees.append(parse_clean(cleaned.replace(",", ".")))  # a decimal comma
    if not trees:
        return Reading(text, None, None, problem)
    return Reading(text, trees[0], trees[1] if len(trees) > 1 else None)


def read_reference(text: str) -> Reading:
    """The reading of a reference: its box or final statement where it has one, all of it elsewhere."""
    stripped = text.strip()
    if "\\boxed" in stripped or "\\fbox" in stripped or "####" in stripped:
        found = extract(stripped)
        stripped = found.answer or ""
    reading = read(stripped)
    if reading.tree is None and stripped:
        found = extract(stripped)
        if found.answer is not None and found.answer != stripped:
            again = read(found.answer)
            if again.tree is not None and not isinstance(again.tree, Text):
                return again
        if not _MATHLIKE.search(stripped):
            return Reading(stripped, Text(words(stripped)))
    return reading


@lru_cache(maxsize=_CACHED_REFERENCES)
def evaluated(tree: Node) -> Node | None:
    """A reference with the value of the sums, integrals and limits in it; None when there are none, or none
    whose value is found."""
    if not any(isinstance(part, Opaque) and part.meaning for part in walk(tree)):
        return None
    from verifiers.symbolic import value_of

    value = rewrite(tree, lambda part: value_of(part) if isinstance(part, Opaque) else None)
    return None if value == tree else value


class MathVerifier(Verifier):
    """Correct when the final answer equals any one of the references, by the rules in docs/verifiers.md."""

    name = "math"
    timeout_s = 10.0  # wall-clock: budgets of operations decide long before
    memory_mib = 1024
    timeout_is_answer = True

    def __init__(self, operations: int = MAX_OPERATIONS) -> None:
        self.operations = operations
        self._references: OrderedDict[str, Reading] = OrderedDict()

    def prepare(self) -> None:
        """Load what the first verdict will need."""
        import verifiers.compare
        import verifiers.reading  # noqa: F401
        from verifiers.numeric import context

        context(50)

    def verify(self, completion: str, task: Task) -> Verdict:
        return self._verify(completion, task, None)

    def explain(self, completion: str, task: Task) -> Verdict:
        """`verify`, with a detail that goes on to say what was extracted and how both sides were read."""
        notes: list[str] = []
        verdict = self._verify(completion, task, notes)
        detail = f"{verdict.detail}\n\n" + "\n".join(notes)
        return Verdict(verdict.status, verdict.reward, verdict.extracted, detail, verdict.seconds)

    def answer_key(self, completion: str, task: Task) -> str | None:
        from verifiers.keys import answer_key

        found = extract(completion)
        return None if found.answer is None else answer_key(read(found.answer), self.operations)

    def candidates(self, completion: str) -> list[str]:
        return candidates(completion)

    # -- the steps -------------------------------------------------------------------------------------

    def _verify(self, completion: str, task: Task, notes: list[str] | None) -> Verdict:
        found = extract(completion)
        if notes is not None:
            notes.append(f"extracted ({found.how}): {_short(found.answer)}")
        if not any(reference.strip() for reference in task.references):
            return Verdict("bad_reference", None, found.answer, "the reference is empty")
        if found.answer is None:
            return self._bad_reference(task) or Verdict.unparsed(found.how)
        answer = found.answer.strip()
        verdict = _quick(answer, task) or self._compare(answer, task, notes)
        if not verdict.is_correct and found.several and self._wants_several(task):
            joined = self._compare(", ".join(found.several), task, notes)
            return joined if joined.is_correct else verdict
        return verdict

    def _wants_several(self, task: Task) -> bool:
        """Whether some reference is a list or a set of answers."""
        trees = [self._reference(reference).tree for reference in task.references]
        return any(isinstance(tree, Seq) and tree.open in ("", "{") for tree in trees)

    def _compare(self, answer: str, task: Task, notes: list[str] | None) -> Verdict:
        reading = read(answer, stated=True)
        problems, rules, late = [], [], ""
        if notes is not None:
            notes.append(f"answer read as: {_tree(reading)}")
        for reference in task.references:
            wanted = self._reference(reference)
            if notes is not None:
                notes.append(f"reference {_short(reference)} read as: {_tree(wanted)}")
            try:
                equal, rule = self._same(wanted, reading, task)
            except TooExpensive as error:
                late = str(error)
                continue
            if notes is not None:
                notes.append(f"rule: {rule}")
                notes.extend(_confirmed(wanted, reading, rule))
            if equal:
                return Verdict.correct(answer, rule)
            if wanted.tree is None:
                problems.append(wanted.problem)
            rules.append(rule)
        if len(problems) == len(task.references):
            return Verdict("bad_reference", None, answer, f"the reference cannot be read: {problems[0]}")
        if late:
            return Verdict.timeout(f"too expensive to decide: {late}", answer)
        if reading.tree is None:
            return Verdict("unparsed", 0.0, answer, f"the answer cannot be read: {reading.problem}")
        return Verdict.wrong(answer, rules[0] if rules else "")

    def _same(self, wanted: Reading, given: Reading, task: Task) -> tuple[bool, str]:
        from verifiers.compare import Comparison

        if isinstance(wanted.tree, Text) or wanted.tree is None:
            plain = words(wanted.text)
            if plain and plain.replace(" ", "") == words(given.text).replace(" ", ""):
                return True, "the same words"
        if wanted.tree is None or given.tree is None:
            return False, wanted.problem or given.problem
        percent = isinstance(task.prompt, str) and bool(_PERCENT_ASKED.search(task.prompt))
        comparison = Comparison(Budget(self.operations), percent)
        rule = ""
        for gold in _golds(wanted):
            for pred in filter(None, (given.tree, given.other)):
                try:
                    match = comparison.same(gold, pred)
                except (RecursionError, OverflowError) as error:
                    raise TooExpensive(f"{type(error).__name__} while comparing") from error
                except Undefined as error:
                    return False, f"undefined: {error}"
                if match:
                    return True, match.rule
                rule = rule or match.rule
        return False, rule

    def _bad_reference(self, task: Task) -> Verdict | None:
        readings = [self._reference(reference) for reference in task.references]
        if all(reading.tree is None for reading in readings):
            problem = readings[0].problem
            return Verdict("bad_reference", None, None, f"the reference cannot be read: {problem}")
        return None

    def _reference(self, reference: str) -> Reading:
        """The reading of a reference, remembered: a group asks for the same one many times."""
        known = self._references.get(reference)
        if known is None:
            known = self._references[reference] = read_reference(reference)
            if len(self._references) > _CACHED_REFERENCES:
                self._references.popitem(last=False)
        return known


def _golds(wanted: Reading) -> Iterator[Node]:
    """The ways to read a reference; what it evaluates to last, since that is expensive."""
    yield from filter(None, (wanted.tree, wanted.other))
    if wanted.tree is not None and (value := evaluated(wanted.tree)) is not None:
        yield value


def _quick(answer: str, task: Task) -> Verdict | None:
    """Integer against integer, without parsing."""
    if not _INTEGER.fullmatch(answer) or not answer.isascii():
        return None
    references = [reference.strip() for reference in task.references]
    if not all(_INTEGER.fullmatch(r) and r.isascii() for r in references):
        return None
    if any(int(answer) == int(r) for r in references):
        return Verdict.correct(answer, "equal integers")
    return Verdict.wrong(answer, "different integers")


def _confirmed(wanted: Reading, given: Reading, rule: str) -> list[str]:
    """What sympy says of an equality that rests on digits."""
    if not rule.startswith("numbers: equal") or wanted.tree is None or given.tree is None:
        return []
    from verifiers.symbolic import difference_vanishes

    said = difference_vanishes(wanted.tree, given.tree)
    outcomes = {True: "simplifies the difference to zero", False: "finds a difference", None: "cannot say"}
    return [f"sympy: {outcomes[said]}"]


def _short(text: str | None) -> str:
    return "nothing" if text is None else text if len(text) <= 200 else text[:200] + "…"


def _tree(reading: Reading) -> str:
    if reading.tree is None:
        return f"unreadable ({reading.problem})"
    return _short(show(reading.tree)) if len(reading.text) < 2000 else f"{type(reading.tree).__name__} (long)"
