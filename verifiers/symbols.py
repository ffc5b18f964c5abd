"""Primaries of the answer grammar: numbers, letters, commands, brackets."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from verifiers.lexer import END, Token
from verifiers.literals import Literals, number
from verifiers.nodes import Call, Const, Div, Mul, Node, Num, Opaque, Rel, Seq, Sym, Text, walk
from verifiers.numerals import IN_WORDS
from verifiers.tables import ACCENTS, FRACTIONS, FUNCTIONS, GLUED, GREEK, OPERATORS, PREFIXES
from verifiers.text import Unreadable, words

_CONSTANTS = {"pi": "pi", "infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo", "Infinity": "oo"}
_NUMBER_SETS = frozenset("RZNQC")
_BINOMIALS = frozenset({"binom", "dbinom", "tbinom"})
_FUNCTION_LETTERS = frozenset("fghFGHPE")
_OPENING = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil"), "lvert": ("rvert", "abs"),
            "lVert": ("rVert", "norm")}  # fmt: skip
_SYMBOL_COMMANDS = (
    GREEK
    | FUNCTIONS.keys()
    | _CONSTANTS.keys()
    | FRACTIONS
    | _BINOMIALS
    | ACCENTS
    | PREFIXES
    | OPERATORS
    | _OPENING.keys()
    | frozenset("mathbb overline bar usqrt ucbrt surd langle emptyset varnothing imath e".split())
)


class Symbols(Literals):
    """Mixin of the parser: everything that is one unit before postfix signs and powers."""

    if TYPE_CHECKING:
        tokens: list[Token]
        position: int
        in_bars: bool
        in_builder: bool

        def __getattr__(self, name: str) -> Any: ...

    def starts_symbol(self, command: str) -> bool:
        return command in _SYMBOL_COMMANDS

    def primary(self) -> Node:
        token = self.peek()
        if token.kind == "num":
            return self.literal()
        if token.kind == "name":
            return self.name()
        if token.kind == "text":
            return self.text()
        if token.kind == "begin":
            return self.environment()
        if token.kind == "cmd":
            return self.command()
        if token.text in ("(", "["):
            return self.bracketed()
        if token.text == "{":
            return self.group()
        if token.text == "\\{":
            return self.braced_set()
        if token.text in ("|", "\\|"):
            return self.bars()
        if token.text == "<":
            return self.angled()
        raise Unreadable(f"unexpected {token.text or 'end'!r}")

    def group(self) -> Node:
        """LaTeX braces; with commas inside, a set in plain notation."""
        opened = self.position
        self.expect("{")
        self.enter()
        bars, self.in_bars = self.in_bars, False
        node = self.over(self.items("", "}"), "}")
        self.in_bars = bars
        if isinstance(node, Seq) and not node.open or self.peek().text in ("|", ":", "mid"):
            self.leave()
            self.position = opened
            return self.braced_set()
        self.expect("}")
        self.leave()
        return node

    def over(self, node: Node, closer: str) -> Node:
        """`a \\over b` and `n \\choose k`: of all that stands before and behind in the group."""
        if self.accept("choose"):
            return Call("binom", (node, self.items("", closer)))
        return Div(node, self.items("", closer)) if self.accept("over") else node

    def bars(self) -> Node:
        if self.in_bars:
            raise Unreadable("bars inside bars")
        bar = self.next().text
        self.in_bars = True
        node = self.arith()
        self.in_bars = False
        self.expect(bar)
        return Call("abs" if bar == "|" else "norm", (node,))

    # -- names -----------------------------------------------------------------------------------------

    def split(self, kind: str, first: str) -> None:
        """Split the token at the cursor behind `first`. Reading it again gives the same, so the parser may go
        back to an earlier position."""
        token = self.tokens[self.position]
        if len(token.text) > len(first):
            rest = Token(kind, token.text[len(first) :])
            self.tokens[self.position : self.position + 1] = [Token(kind, first, token.spaced), rest]

    def take_letter(self) -> None:
        """Consume the first letter of the name token at the cursor."""
        self.split("name", self.peek().text[0])
        self.position += 1

    def letter(self, letter: str) -> Node:
        if letter == "e":
            return Const("e")
        if letter == "i":
            return Const("i")
        return Sym(letter)

    def name(self) -> Node:
        word = self.peek().text
        if word in FUNCTIONS and self.starts_function(self.peek(1)):
            self.next()
            return self.function(FUNCTIONS[word])
        if word in _CONSTANTS:
            self.next()
            return Const(_CONSTANTS[word])
        if word in GREEK and len(word) > 1:
            self.next()
            return self.symbol(word)
        for glued in GLUED:
            if word.startswith(glued) and len(word) - len(glued) in (0, 1, 2):
                if len(word) == len(glued) and not self.starts_function(self.peek(1)):
                    break
                self.split("name", glued)
                self.position += 1
                return self.function(FUNCTIONS[glued])
        if len(word) >= 2 and word.isupper() and word.isascii():
            self.next()
            return self.symbol(word)
        if len(word) > 1 and word.endswith("pi") and len(word) <= 4:
            self.split("name", word[:-2])
            self.position += 1
            return Mul(tuple(self.letter(c) for c in word[:-2])) if len(word) > 3 else self.letter(word[0])
        if len(word) > 3 or not word.isascii():
            raise Unreadable(f"{word!r} is a word, not mathematics")
        self.take_letter()
        return self.symbol(word[0])

    def starts_function(self, token: Token) -> bool:
        return token.kind in ("num", "name") or (
            token.text in ("(", "^", "_", "{", "[", "|", "-") if token.kind == "op" else token.kind == "cmd"
        )

    def symbol(self, name: str) -> Node:
        """A symbol with its index, or an unknown function applied."""
        if self.peek().text == "_" and self.peek().kind == "op":
            self.next()
            name += "_" + self.index()
        elif len(name) == 1:
            node = self.letter(name)
            if not isinstance(node, Sym):
                return node
        while self.peek().kind == "op" and self.peek().text == "'":
            self.next()
            name += "'"
        if name in _FUNCTION_LETTERS and [self.peek(k).text for k in range(5)] == ["^", "{", "-", "1", "}"]:
            if self.peek(5).text == "(":
                self.position += 5
                name += "^{-1}"
        if self.peek().kind == "op" and self.peek().text == "(" and name[0] in _FUNCTION_LETTERS:
            inner = self.bracketed()
            args = inner.items if isinstance(inner, Seq) and inner.open == "(" else (inner,)
            return Call(name, args)
        return Sym(name)

    def index(self) -> str:
        """The text of a subscript, without braces and spaces."""
        if self.peek().text != "{":
            token = self.peek()
            if token.kind == "name" and len(token.text) > 1:
                self.take_letter()
                return token.text[0]
            if token.kind not in ("num", "name", "cmd", "text"):
                raise Unreadable("an index that is none")
            return self.next().text
        self.next()
        parts, depth = [], 1
        while depth:
            token = self.next()
            if token.kind == "end":
                raise Unreadable("an index is not closed")
            depth += {"{": 1, "}": -1}.get(token.text, 0) if token.kind == "op" else 0
            parts.append(token.text)
        return "".join(parts[:-1])

    def text(self) -> Node:
        """Words where a value was expected: a name such as `\\text{Area} = 5`, or a text answer."""
        parts = [self.next().text]
        while self.peek().kind == "text":
            parts.append(self.next().text)
        plain = words(" ".join(parts))
        return IN_WORDS.get(plain) or Text(plain)

    # -- commands --------------------------------------------------------------------------------------

    def token_argument(self) -> Node:
        """The argument of a LaTeX command: a group, or a single digit, letter or command."""
        token = self.peek()
        if token.kind == "op" and token.text == "{":
            return self.group()
        if token.kind == "num" and len(token.text) > 1:
            if not token.text.isdigit():
                raise Unreadable("a command applied to a decimal without braces")
            self.split("num", token.text[0])
        if token.kind == "num":
            return number(self.next().text)
        if token.kind == "name":
            self.take_letter()
            return self.letter(token.text[0])
        return self.primary()

    def command(self) -> Node:
        name = self.next().text
        if name in FRACTIONS:
            top = self.token_argument()
            return Div(top, self.token_argument())
        if name in ("usqrt", "ucbrt", "surd"):
            inner = self.literal() if self.peek().kind == "num" else self.token_argument()
            return Call("root", (inner, Num(Fraction(3 if name == "ucbrt" else 2))))
        if name in _CONSTANTS:
            return Const(_CONSTANTS[name])
        if name in FUNCTIONS and name not in _BINOMIALS:
            return self.function(FUNCTIONS[name])
        if name in ("ldots", "dots", "cdots"):
            return Sym("…")
        if name in _BINOMIALS:
            return Call("binom", (self.token_argument(), self.token_argument()))
        if name in GREEK or name in ("imath", "jmath"):
            return self.symbol(name)
        if name in ("emptyset", "varnothing"):
            return Seq("{", "}", ())
        if name == "mathbb":
            return self.number_set()
        if name in _OPENING:
            closer, function = _OPENING[name]
            node = self.arith()
            self.expect(closer)
            return Call(function, (node,))
        if name == "langle":
            self.position -= 1
            return self.angled()
        if name in OPERATORS:
            return self.operator(name)
        if name in ("overline", "bar") or name in ACCENTS:
            return self.accented(name)
        if name in PREFIXES:
            return Sym(name + "".join(_flat(self.primary())))
        raise Unreadable(f"\\{name} is not known")

    def number_set(self) -> Node:
        braced = self.accept("{")
        letter = self.next().text
        if braced:
            self.expect("}")
        if letter in ("E", "P", "V") and self.peek().text in ("(", "["):
            inner = self.bracketed()
            return Call(letter, inner.items if isinstance(inner, Seq) else (inner,))
        if letter not in _NUMBER_SETS:
            raise Unreadable(f"unknown set {letter!r}")
        suffix = ""
        if self.peek().text in ("^", "_"):
            self.next()
            suffix = self.next().text if self.peek().text in ("*", "+", "-") else self.index()
        return Const(letter + suffix) if not suffix else Sym(f"set{letter}{suffix}")

    def accented(self, name: str) -> Node:
        inner = self.token_argument()
        if name in ("overline", "bar") and Const("i") in walk(inner) and inner != Const("i"):
            return Call("conj", (inner,))
        if not isinstance(inner, (Sym, Const, Mul)) or (
            isinstance(inner, Mul) and not all(isinstance(i, Sym) for i in inner.items)
        ):
            raise Unreadable(f"\\{name} on something that is no symbol")
        return Sym(f"{name} {''.join(_flat(inner))}")

    def operator(self, name: str) -> Node:
        """`\\sum_{k=1}^n k` and the like: kept as written, never evaluated."""
        start = self.position
        parts: list[Node] = []
        while self.peek().text in ("_", "^") and self.peek().kind == "op":
            mark = self.next().text
            parts.append(Text(mark + re.sub(r"\s", "", self.index())))
        waiting = 0
        while self.peek().kind != "end" and waiting < 200:
            token = self.peek()
            if token.kind == "op" and token.text in (")", "]", "}", "\\}", "=", ","):
                break
            if token.text in ("=", "approx", "implies", "le", "ge", "<", ">"):
                break
            waiting += 1
            if token.text in ("(", "[", "{", "\\{"):
                parts.append(Opaque("group", (self.primary(),)))
            else:
                self.next()
                parts.append(Text(token.text))
        return Opaque(name, tuple(parts), self.meaning(name, self.tokens[start : self.position]))

    def meaning(self, name: str, tokens: list[Token]) -> tuple[Node, ...] | None:
        """(variable, from, to, body) of a sum, a product or an integral, (variable, at, body) of a limit."""
        make: Any = type(self)
        inner = make([*tokens, END])
        inner.depth = self.depth
        try:
            return _READERS[name](inner) if name in _READERS else None
        except Unreadable:
            return None


def _counted(inner: Any) -> tuple[Node, ...] | None:
    """`_{k=1}^{n} body` of a sum or product; a body of several terms without brackets is not understood."""
    inner.expect("_")
    below = inner.group() if inner.peek().text == "{" else None
    inner.expect("^")
    above = inner.token_argument()
    body = inner.product()
    if not isinstance(below, Rel) or below.ops != ("=",) or not isinstance(below.items[0], Sym):
        return None
    return (below.items[0], below.items[1], above, body) if inner.peek().kind == "end" else None


def _integrated(inner: Any) -> tuple[Node, ...] | None:
    """`_a^b body dx`."""
    if len(inner.tokens) < 4:
        return None
    last = inner.tokens[-2]
    if last.kind != "name" or len(last.text) > 3:
        return None
    if last.text[-2:-1] != "d" and (len(last.text) > 1 or inner.tokens[-3].text != "d"):
        return None
    variable = last.text[-1]
    head = inner.tokens[:-3] if len(last.text) == 1 else inner.tokens[:-2]
    if len(last.text) == 3:
        head = [*head, Token("name", last.text[0], last.spaced)]
    inner.tokens = [*head, END]
    inner.expect("_")
    low = inner.token_argument()
    inner.expect("^")
    high = inner.token_argument()
    body = inner.arith() if inner.peek().kind != "end" else Num(Fraction(1))
    return (Sym(variable), low, high, body) if inner.peek().kind == "end" else None


def _approached(inner: Any) -> tuple[Node, ...] | None:
    """`_{x \\to a} body`, from both sides."""
    inner.expect("_")
    inner.expect("{")
    variable = inner.next()
    if variable.kind != "name" or len(variable.text) > 1 or not inner.accept("to", "rightarrow"):
        return None
    at = inner.arith()
    inner.expect("}")
    body = inner.product()
    return (Sym(variable.text), at, body) if inner.peek().kind == "end" else None


_READERS = {"sum": _counted, "prod": _counted, "int": _integrated, "lim": _approached}


def _flat(node: Node) -> list[str]:
    if isinstance(node, (Sym, Const)):
        return [node.name]
    if isinstance(node, Mul):
        return [part for item in node.items for part in _flat(item)]
    raise Unreadable("a mark on something that is no symbol")
