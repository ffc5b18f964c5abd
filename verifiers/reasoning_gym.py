"""Answers to reasoning-gym problems, scored by the `score_answer` of the generator that made the problem.

A task carries the generator's name and options and the entry it made, as JSON. The entry is not made again:
some generators iterate over sets of texts, and give every process another problem for the same seed.

Some of the package's scorers evaluate what the policy wrote. Here they do not: `eval` in those modules is
`ast.literal_eval`, and what goes to sympy's parser must be a plain expression of known functions
(`plain_expression`).
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers.base import Verifier, describe_exception
from verifiers.extract import extract
from verifiers.visible import without_thinking

KEY = "reasoning_gym"  # in Task.metadata: {"name", "options", "answer", "metadata"}
EXTRA = "reasoning-gym is not installed: pip install 'reasoner[tasks]'"
FULL_MARKS = 1.0
CHUNK = 100  # problems of one seed: a few generators make all of them at once

#: Modules of reasoning-gym whose scorers call `eval` on an answer.
_EVALUATING = ("string_insertion", "spiral_matrix", "binary_matrix")
#: Generators whose scorers hand an answer to sympy's parser, which evaluates it.
PARSING = frozenset(
    {"countdown", "puzzle24", "simple_integration", "intermediate_integration", "polynomial_multiplication"}
)
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt Abs pi".split()
)
_MAX_EXPRESSION = 1000  # characters
#: Generators whose own scorer gives full marks to any text (0.1.25): the answer must be the generator's.
_EXACT = frozenset({"game_of_life_halting"})
#: Likewise for any beginning of the answer, `0` for `0.234375`: it must be as near as the scorer asks else.
_TOLERANCE = {"coin_flip": Fraction(1, 10_000)}
_NUMBER = re.compile(r"[-+]?(\d{1,40}/\d{1,40}|(\d{1,40}|\d{0,40}\.\d{1,40})([eE][-+]?\d{1,2})?)")
#: Generators whose metadata holds boards of tuples, which JSON knows only as lists.
_TUPLES = frozenset({"arc_agi", "rearc"})


def package() -> Any:
    """The package `reasoning_gym`, with scorers that evaluate no answers. UsageError without it."""
    try:
        gym = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise UsageError(f"{EXTRA} ({error})") from None
    for name in _EVALUATING:
        importlib.import_module(f"reasoning_gym.algorithmic.{name}").eval = ast.literal_eval  # type: ignore[attr-defined]
    importlib.import_module("reasoning_gym.games.n_queens").eval = ast.literal_eval  # type: ignore[attr-defined]
    return gym


def generator(name: str, options: Mapping[str, Any], seed: int) -> Any:
    """reasoning-gym's dataset of `CHUNK` problems with these options."""
    return _generator(name, json.dumps(dict(options), sort_keys=True), seed)


@lru_cache(maxsize=64)
def _generator(name: str, options: str, seed: int) -> Any:
    return package().create_dataset(name, **json.loads(options), seed=seed, size=CHUNK)


def plain_expression(text: str) -> bool:
    """Whether a text holds numbers, one-letter names, known functions and `+-*/^().,=` only."""
    if len(text) > _MAX_EXPRESSION or not re.fullmatch(r"[\w\s+\-*/^().,=]*", text, re.ASCII):
        return False
    rest = re.sub(r"(?<![\w.])(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", "1", text)
    names = re.findall(r"[A-Za-z_]\w*", rest)
    return "." not in rest and all(name in _FUNCTIONS or re.fullmatch(r"[A-Za-z]", name) for name in names)


def answer_of(completion: str) -> str | None:
    """What stands in the last `<answer>` tags, else the final answer as the math verifier extracts it."""
    text = without_thinking(completion)
    if text is None:
        return None
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return tagged[-1].strip() if tagged else extract(completion).answer


class ReasoningGymVerifier(Verifier):
    """Right from full marks on; less is a wrong answer with the reward that the generator gives it."""

    name = "reasoning_gym"
    correct_from = FULL_MARKS
    timeout_is_answer = True

    def prepare(self) -> None:
        """Load what the first verdict will need."""
        package()

    def verify(self, completion: str, task: Task) -> Verdict:
        made = task.metadata.get(KEY)
        if not isinstance(made, Mapping):
            return Verdict.error(f"task {task.id} is none of reasoning-gym's: its metadata has no {KEY!r}")
        answer = answer_of(completion)
        if answer is None:
            return Verdict.unparsed("no answer in <answer> tags, a box or a final statement")
        name = made["name"]
        if name in PARSING and not plain_expression(answer):
            return Verdict.wrong(answer, "not a plain expression")
        scorer = generator(name, made["options"], seed=0)
        metadata = _tuples(made["metadata"]) if name in _TUPLES else made["metadata"]
        entry = {"question": task.prompt, "answer": made["answer"], "metadata": metadata}
        try:
            score = _score(scorer, name, answer, entry)
        except Exception as error:  # most scorers take any text; where one does not, the gold answer decides
            if made["answer"] is None:
                raise
            _score(scorer, name, made["answer"], entry)  # raises as well when the scorer is what is broken
            return Verdict("unparsed", 0.0, answer, f"{name} cannot read it: {describe_exception(error)}")
        make = Verdict.correct if score >= FULL_MARKS else Verdict.wrong
        return make(answer, f"score {score:g} by {name}", min(max(score, 0.0), FULL_MARKS))

    def answer_key(self, completion: str, task: Task) -> str | None:
        answer = answer_of(completion)
        return None if answer is None else " ".join(answer.split())


def _score(scorer: Any, name: str, answer: str, entry: dict[str, Any]) -> float:
    if name in _EXACT:
        return float(answer == entry["answer"])
    if name in _TOLERANCE:
        return float(_near(answer, entry["answer"], _TOLERANCE[name]))
    return float(scorer.score_answer(answer, entry))


def _near(answer: str, gold: str, tolerance: Fraction) -> bool:
    """Whether two plain numbers or fractions are that near; False for anything else."""
    numbers = [text.strip().replace(",", "") for text in (answer, gold)]
    if not all(_NUMBER.fullmatch(text) for text in numbers):
        return False
    try:
        return abs(Fraction(numbers[0]) - Fraction(numbers[1])) <= tolerance
    except ZeroDivisionError:
        return False


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
