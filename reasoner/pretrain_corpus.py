"""The pre-training corpus: what a small web of people writing down arithmetic might look like.

Most just state an answer, often wrong when the problem is hard; a minority works line by line, with slips
from which they go on; a few notice a slip and correct it; some pages are plain tables of single operations.
Nothing is filtered by correctness. Document `i` is a pure function of (seed, i). No document contains a
held-out problem, neither as its problem, nor as a run of terms inside it, nor in a line of working, and none
has more than four operations in a row, so none contains an out-of-distribution problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from random import Random

from envs.arithmetic import (
    FAMILIES,
    LEVELS,
    Tokens,
    apply,
    cells,
    draw_expression,
    next_operation,
    substitute,
    touches_held_out,
)

END = "<|end|>"
BOXED = "\\boxed{"
MAX_DOCUMENT_TOKENS = 128


@dataclass(frozen=True)
class Mixture:
    """Shares are of all documents; the rest of `table` is divided among the three answering styles."""

    table: float = 0.12  # tables of single operations, no problem, no final answer
    direct: float = 0.80  # of the documents with a problem
    working: float = 0.14
    corrected: float = 0.06
    direct_wrong: tuple[float, ...] = (0.35, 0.55, 0.70, 0.80)  # by level
    slip: float = 0.22  # wrong result, a line of working
    table_slip: float = 0.02  # wrong result, a line of a table
    notice_at_once: float = 0.6  # of noticed slips; the others are noticed a line, or an answer, later

    def __post_init__(self) -> None:
        if abs(self.direct + self.working + self.corrected - 1) > 1e-9:
            raise ValueError("direct, working and corrected are shares of one whole: they must add up to 1")


@dataclass(frozen=True)
class Document:
    """One page: `problem` (None for a table), the `style` it is written in, and the whole text with END."""

    text: str
    style: str  # direct | working | corrected | table
    problem: str | None
    level: int
    family: str


def slip(rng: Random, value: int) -> int:
    """A plausible wrong result: near, a carry lost, digits swapped, a digit misread, the sign dropped.
    A positive value stays positive, so that the value of a pair of parentheses never becomes negative."""
    while True:
        kind, digits = rng.random(), str(abs(value))
        if kind < 0.30:
            wrong = value + rng.choice((-1, 1))
        elif kind < 0.60:
            wrong = value + rng.choice((-10, 10))
        elif kind < 0.70:
            wrong = value + rng.choice((-2, 2))
        elif kind < 0.80:
            wrong = int(digits[:-2] + digits[-2:][::-1]) * (1 if value >= 0 else -1)
        elif kind < 0.90:
            place = rng.randrange(len(digits))
            wrong = int(digits[:place] + str(rng.randint(0, 9)) + digits[place + 1 :])
            wrong *= 1 if value >= 0 else -1
        else:
            wrong = abs(value)
        if wrong != value and (value < 0 or wrong > 0):
            return wrong


def _guess(rng: Random, value: int) -> int:
    """A wrong answer given without working: a slip or a rough estimate."""
    while True:
        wrong = slip(rng, value) if rng.random() < 0.7 else value + round(rng.gauss(0, 15))
        if wrong != value:
            return wrong


class _Writer:
    """Writes lines of working and remembers whether one of them is a held-out problem."""

    def __init__(self, rng: Random, mixture: Mixture) -> None:
        self.rng, self.mixture = rng, mixture
        self.text, self.leaked = "", False

    def line(self, tokens: Tokens, value: int, prefix: str = "") -> Tokens:
        """Write the next operation of `tokens` with the result `value`; what is left to do."""
        index = next_operation(tokens)
        operation = tokens[index - 1 : index + 2]
        self.leaked |= touches_held_out(operation)
        self.text += f"{prefix}{''.join(map(str, operation))}={value};"
        return substitute(tokens, index, value)

    def step(self, tokens: Tokens) -> Tokens:
        """One line, with a slip now and then that is not noticed."""
        value = apply(tokens, next_operation(tokens))
        return self.line(tokens, slip(self.rng, value) if self.rng.random() < self.mixture.slip else value)

    def noticed_slip(self, tokens: Tokens) -> Tokens:
        """A slip, noticed at once or after one more line (or the boxed answer), and the line done again."""
        value = apply(tokens, next_operation(tokens))
        astray = self.line(tokens, slip(self.rng, value))
        if self.rng.random() >= self.mixture.notice_at_once:
            if len(astray) == 1:
                self.box(astray)
            else:
                self.line(astray, apply(astray, next_operation(astray)))
        return self.line(tokens, value, prefix="no,")

    def box(self, tokens: Tokens) -> None:
        self.text += f"{BOXED}{tokens[0]}}}"


def _answer(rng: Random, mixture: Mixture, tokens: Tokens, level: int, style: str) -> tuple[str, bool]:
    """The body of a page with a problem, and whether a line of it is held out."""
    writer = _Writer(rng, mixture)
    if style == "direct":
        rest = tokens
        while len(rest) > 1:
            index = next_operation(rest)
            rest = substitute(rest, index, apply(rest, index))
        wrong = rng.random() < mixture.direct_wrong[level - 1]
        writer.box([_guess(rng, int(rest[0]))] if wrong else rest)
        return writer.text, False
    noticed = rng.randrange(level) if style == "corrected" else None
    for step in range(level):
        tokens = writer.noticed_slip(tokens) if step == noticed else writer.step(tokens)
    writer.box(tokens)
    return writer.text, writer.leaked


def _table_line(rng: Random) -> Tokens:
    """One operation as it occurs in working: the left side may be any intermediate value."""
    kind = rng.random()
    if kind < 0.30:
        return [rng.randint(10, 99), "*", rng.randint(2, 9)]
    left = rng.randint(1, 99) if kind < 0.5 else rng.randint(-150, 400)
    right = rng.randint(1, 99) if kind < 0.85 else rng.randint(10, 500)
    return [left, rng.choice("+-"), right]


def _table(rng: Random, mixture: Mixture) -> str:
    text = ""
    for _ in range(rng.randint(3, 9)):
        while touches_held_out(tokens := _table_line(rng)):
            pass
        value = apply(tokens, 1)
        value = slip(rng, value) if rng.random() < mixture.table_slip else value
        text += f"{''.join(map(str, tokens))}={value};"
    return text


def document(seed: int, index: int, mixture: Mixture | None = None) -> Document:
    """Page `index` of the corpus."""
    mixture = mixture or Mixture()
    rng = Random(f"corpus:{seed}:{index}")
    if rng.random() < mixture.table:
        return Document(_table(rng, mixture) + END, "table", None, 1, "table")
    level = rng.choice(LEVELS)
    family = rng.choice(cells(LEVELS, FAMILIES)[level])
    dice = rng.random()
    style = "direct" if dice < mixture.direct else "corrected"
    if mixture.direct <= dice < mixture.direct + mixture.working:
        style = "working"
    while True:
        tokens = draw_expression(rng, level, family)
        if touches_held_out(tokens):
            continue
        body, leaked = _answer(rng, mixture, tokens, level, style)
        problem = "".join(map(str, tokens))
        text = f"{problem}=?\n{body}{END}"
        if not leaked and len(encode(text)) <= MAX_DOCUMENT_TOKENS:
            return Document(text, style, problem, level, family)


def documents(seed: int, start: int = 0, mixture: Mixture | None = None) -> Iterator[Document]:
    """The endless corpus from page `start` on."""
    mixture = mixture or Mixture()
    while True:
        yield document(seed, start, mixture)
        start += 1


#: Token ids: bytes are themselves, then three tokens more (`reasoner.pretrain.build_tokenizer`).
BOXED_ID, END_ID, PAD_ID, VOCAB_SIZE = 256, 257, 258, 259
_AS_CODE_POINTS = {BOXED: chr(BOXED_ID), END: chr(END_ID)}


def encode(text: str) -> list[int]:
    """Token ids of an ASCII corpus text: what the tokenizer gives, without loading it."""
    for piece, code_point in _AS_CODE_POINTS.items():
        text = text.replace(piece, code_point)
    return [ord(c) for c in text]


def corpus_sha256(seed: int, count: int, mixture: Mixture | None = None) -> str:
    """Checksum of the first `count` pages."""
    digest = sha256()
    for index in range(count):
        digest.update(document(seed, index, mixture).text.encode())
    return digest.hexdigest()
