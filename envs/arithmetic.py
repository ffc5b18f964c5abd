"""Procedurally generated arithmetic: chains of + and -, products, parentheses, on 1 to 4 operations.

Problem `i` of the training stream is a pure function of (seed, i), so a position in the stream is one
integer. The held-out split is a bucket of a stable hash of the canonical text; no training problem contains
a text of that bucket anywhere (`touches_held_out`), and the pre-training corpus keeps the same rule for its
lines of working. The out-of-distribution split has 5 to 7 operations: longer than anything trained on.

A multiplication alone (`34*7`) is the multiplication table, not a problem of any family: products and
parentheses begin at level 2, and a single product is never held out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random
from typing import Any

from envs.specs import Spec, check_options
from envs.specs import levels as read_levels
from envs.tasks import SingleTurnTasks
from reasoner.errors import UsageError
from reasoner.types import Task

FAMILIES = ("chain", "product", "paren")
LEVELS = (1, 2, 3, 4)
OOD_LEVELS = (5, 6, 7)
HELD_OUT_ONE_IN = 32
MAX_ABS_VALUE = 999
_FIRST_LEVEL = {"chain": 1, "product": 2, "paren": 2}
_SPLIT_DRAWS = 5000  # draws without a new problem after which a (level, family) cell counts as exhausted

#: Numbers are ints (an intermediate value may be negative), everything else is one of `+-*()`.
Tokens = list[int | str]


def parse(text: str) -> Tokens:
    """Tokens of a canonical expression: positive integers, `+-*()`, no blanks."""
    tokens: Tokens = [int(t) if t.isdigit() else t for t in re.findall(r"\d+|[-+*()]", text)]
    if "".join(map(str, tokens)) != text or not tokens:
        raise ValueError(f"not a canonical arithmetic expression: {text!r}")
    return tokens


def next_operation(tokens: Tokens) -> int:
    """Index of the operator to work out next: innermost parentheses, then products, then left to right."""
    low, high = 0, len(tokens)
    if ")" in tokens:
        high = tokens.index(")")
        low = max(i for i in range(high) if tokens[i] == "(") + 1
    operators = [i for i in range(low, high) if tokens[i] in ("+", "-", "*")]
    if not operators:
        raise ValueError(f"no operation left in {''.join(map(str, tokens))!r}")
    return next((i for i in operators if tokens[i] == "*"), operators[0])


def apply(tokens: Tokens, index: int) -> int:
    """The value of the operation at `index`."""
    left, operator, right = int(tokens[index - 1]), tokens[index], int(tokens[index + 1])
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def substitute(tokens: Tokens, index: int, value: int) -> Tokens:
    """The expression after the operation at `index` was replaced by `value`, spent parentheses dropped."""
    before, after = tokens[: index - 1], tokens[index + 2 :]
    if before and after and before[-1] == "(" and after[0] == ")":
        before, after = before[:-1], after[1:]
    return [*before, value, *after]


def values(text: str) -> list[int]:
    """Every intermediate value in the order of working; the last one is the answer."""
    tokens, found = parse(text), []
    while len(tokens) > 1:
        index = next_operation(tokens)
        found.append(apply(tokens, index))
        tokens = substitute(tokens, index, found[-1])
    return found or [int(tokens[0])]


def first_step(text: str) -> str:
    """The left side of the first line of working, `12+7=` for `(12+7)*3-5`: it forces that style."""
    tokens = parse(text)
    index = next_operation(tokens)
    return f"{tokens[index - 1]}{tokens[index]}{tokens[index + 1]}="


def in_held_out_bucket(text: str) -> bool:
    """Whether a canonical text is reserved for held-out evaluation: a stable hash, the same in every run."""
    if text.count("*") == 1 and not any(c in text for c in "+-("):
        return False
    digest = blake2b(text.encode(), digest_size=4, person=b"reasoner-heldout").digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def windows(tokens: Tokens) -> Iterator[str]:
    """Every contiguous run of tokens that is an expression itself (an operation at least)."""
    for start, first in enumerate(tokens):
        if first in ("+", "-", "*", ")"):
            continue
        depth = 0
        for stop in range(start, len(tokens)):
            token = tokens[stop]
            depth += (token == "(") - (token == ")")
            if depth < 0:
                break
            if depth == 0 and stop > start and (token == ")" or isinstance(token, int)):
                yield "".join(map(str, tokens[start : stop + 1]))


def touches_held_out(tokens: Tokens) -> bool:
    """Whether a held-out text is the expression or any run of terms inside it (signs of values aside:
    `-8-3` contains `8-3`)."""
    unsigned: Tokens = [abs(t) if isinstance(t, int) else t for t in tokens]
    return any(in_held_out_bucket(window) for window in windows(unsigned))


def _bracket(rng: Random, multiplied: bool) -> Tokens:
    """`(a+b)` or `(a-b)`, positive, with a two-digit value when it will be multiplied."""
    while True:
        a, b, operator = rng.randint(1, 99), rng.randint(1, 99), rng.choice("+-")
        value = a + b if operator == "+" else a - b
        if (10 <= value <= 99) if multiplied else value >= 1:
            return ["(", a, operator, b, ")"]


def _term(rng: Random, kind: str) -> Tokens:
    if kind == "number":
        return [rng.randint(1, 99)]
    if kind == "product":
        return [rng.randint(10, 99), "*", rng.randint(2, 9)]
    if kind == "bracket":
        return _bracket(rng, multiplied=False)
    return [*_bracket(rng, multiplied=True), "*", rng.randint(2, 9)]


_TERM_OPERATIONS = {"number": 0, "product": 1, "bracket": 1, "scaled_bracket": 2}
_SPECIAL_TERMS = {"chain": (), "product": ("product",), "paren": ("bracket", "scaled_bracket")}


def _term_kinds(rng: Random, level: int, family: str) -> list[str]:
    """Kinds of terms, joined by + and -, that make `level` operations altogether."""
    while family != "chain":
        kinds = [rng.choice(_SPECIAL_TERMS[family])]
        if level >= 4 and rng.random() < 0.4:
            kinds.append(rng.choice((*_SPECIAL_TERMS[family], "product")))
        numbers = level - sum(_TERM_OPERATIONS[k] for k in kinds) - (len(kinds) - 1)
        if numbers >= 0:
            kinds += ["number"] * numbers
            rng.shuffle(kinds)
            return kinds
    return ["number"] * (level + 1)


def draw_expression(rng: Random, level: int, family: str) -> Tokens:
    """A random expression of `level` operations whose intermediate values stay within +-999."""
    while True:
        tokens: Tokens = []
        for kind in _term_kinds(rng, level, family):
            if tokens:
                tokens.append(rng.choice("+-"))
            tokens += _term(rng, kind)
        if all(abs(v) <= MAX_ABS_VALUE for v in values("".join(map(str, tokens)))):
            return tokens


def cells(levels: Sequence[int], families: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """The families that exist at each level."""
    return {
        level: tuple(f for f in FAMILIES if f in families and level >= _FIRST_LEVEL[f]) for level in levels
    }


@dataclass(frozen=True)
class ArithmeticTasks(SingleTurnTasks):
    """The arithmetic task source. `levels` and `families` restrict the training and held-out problems;
    the out-of-distribution split keeps the families and has 5 to 7 operations."""

    seed: int = 0
    levels: tuple[int, ...] = LEVELS
    families: tuple[str, ...] = FAMILIES
    name: str = "arithmetic"
    licence: str = "Apache-2.0"
    base_template: str = "{prompt}=?\n"
    chat_template: str = "Calculate {prompt}. Give the final answer in \\boxed{{}}."

    def __post_init__(self) -> None:
        for kind, given, known in (("level", self.levels, LEVELS), ("family", self.families, FAMILIES)):
            if unknown := [g for g in given if g not in known]:
                raise UsageError(
                    f"arithmetic has no {kind} {unknown[0]!r}: choose from {', '.join(map(str, known))}"
                )
        if not self.levels or not self.families:
            raise UsageError("arithmetic needs at least one level and one family")
        if empty := [level for level, found in cells(self.levels, self.families).items() if not found]:
            raise UsageError(
                f"arithmetic has no {' or '.join(self.families)} problems at level {empty[0]}: "
                "products and parentheses begin at level 2"
            )

    def train(self, index: int) -> Task:
        """Problem `index` of the unlimited stream; contains no held-out text anywhere."""
        if index < 0:
            raise UsageError(f"a position in the training stream cannot be negative: {index}")
        rng = Random(f"arithmetic:train:{self.seed}:{index}")
        level = rng.choice(self.levels)
        family = rng.choice(cells(self.levels, self.families)[level])
        while touches_held_out(tokens := draw_expression(rng, level, family)):
            pass
        return _task(f"arithmetic/train/{self.seed}/{index}", tokens, level, family)

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """Held out, longer than trained, and, when training leaves families out, those families."""
        return ("held_out", "ood", *(("unseen_family",) if self._unseen_families else ()))

    @property
    def _unseen_families(self) -> tuple[str, ...]:
        there = {family for found in cells(self.levels, FAMILIES).values() for family in found}
        return tuple(f for f in FAMILIES if f in there and f not in self.families)

    def split(self, name: str, n: int) -> list[Task]:
        """The first `n` problems of one of `eval_splits`, all different, balanced over levels and families.

        The sets do not depend on the seed, and a smaller set is the beginning of a larger one.
        Raises UsageError for an unknown split or one that holds fewer than `n` problems."""
        if name == "unseen_family" and self._unseen_families:
            there = [lv for lv, fs in cells(self.levels, self._unseen_families).items() if fs]
            others = replace(self, levels=tuple(there), families=self._unseen_families)
            return others.split("held_out", n)
        if name not in ("held_out", "ood"):
            raise UsageError(f"arithmetic has no split {name!r}: choose {' or '.join(self.eval_splits)}")
        levels = self.levels if name == "held_out" else OOD_LEVELS
        open_cells = [(level, f) for level, fs in cells(levels, self.families).items() for f in fs]
        wheels = {level: [f for lv, f in open_cells if lv == level] for level in levels}
        seen: set[str] = set()
        tasks: list[Task] = []
        turn = 0
        while len(tasks) < n:
            if not wheels:
                raise UsageError(f"split {name!r} holds only {len(tasks)} such problems, {n} were asked for")
            level = list(wheels)[turn % len(wheels)]
            family = wheels[level][turn // len(wheels) % len(wheels[level])]
            tokens = _draw_new(Random(f"arithmetic:{name}:{turn}"), level, family, name, seen)
            turn += 1
            if tokens is None:
                wheels[level].remove(family)
                wheels = {lv: fs for lv, fs in wheels.items() if fs}
                continue
            seen.add("".join(map(str, tokens)))
            tasks.append(_task(f"arithmetic/{name}/{len(tasks)}", tokens, level, family))
        return tasks


def _draw_new(rng: Random, level: int, family: str, split: str, seen: set[str]) -> Tokens | None:
    """A problem of the split that is not in `seen`, or None when the cell seems exhausted."""
    for _ in range(_SPLIT_DRAWS):
        tokens = draw_expression(rng, level, family)
        text = "".join(map(str, tokens))
        if text not in seen and (split == "ood" or in_held_out_bucket(text)):
            return tokens
    return None


def _task(task_id: str, tokens: Tokens, level: int, family: str) -> Task:
    text = "".join(map(str, tokens))
    return Task(task_id, text, str(values(text)[-1]), family, float(level))


def from_spec(spec: Spec, seed: int) -> ArithmeticTasks:
    """The source of `arithmetic:levels=1-2,families=chain|product`."""
    check_options(spec, ("levels", "families"))
    chosen: dict[str, Any] = {}
    if "levels" in spec.options:
        chosen["levels"] = read_levels(spec.options["levels"])
    if "families" in spec.options:
        chosen["families"] = tuple(spec.options["families"].split("|"))
    return ArithmeticTasks(seed, **chosen)
