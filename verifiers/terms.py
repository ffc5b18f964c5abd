"""The arithmetic half of the answer grammar: sums, products, powers, functions, numbers, units.

    term    = factor { ["·" | "×" | "/" | "÷"] factor } [unit]
    factor  = ("+" | "-" | "±") factor | power
    power   = primary { "!" | "%" | "°" | "'" | "_" index } [ "^" exponent ]

Functions without parentheses take the factors that follow, up to an explicit operator or another
function.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from verifiers.lexer import END, Token
from verifiers.nodes import (
    Add,
    Call,
    Const,
    Div,
    Neg,
    Node,
    Num,
    Opaque,
    PlusMinus,
    Pow,
    Quantity,
    Seq,
    Sym,
)
from verifiers.quantities import ORDINALS, Quantities, times
from verifiers.symbols import Symbols
from verifiers.tables import AND_WORDS, FUNCTIONS, INVERSES, OR_WORDS
from verifiers.text import Unreadable

MAX_DEPTH = 40
_ADDITIVE = {"+": "+", "-": "-", "pm": "pm", "mp": "mp"}
_TIMES = frozenset({"cdot", "times", "*", "ast", "cdotp", "bullet", "star"})
_DIVIDE = frozenset({"/", "div", "slash"})


class Terms(Symbols, Quantities):
    """The token cursor, and everything below a relation's side. `verifiers.parser.Parser` adds the rest."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.position = tokens, 0
        self.depth = 0
        self.in_builder = False
        self.in_bars = False
        self.in_call = 0

    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else END

    def next(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def accept(self, *texts: str) -> bool:
        if self.peek().kind in ("op", "cmd") and self.peek().text in texts:
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise Unreadable(f"expected {text!r}, found {self.peek().text or 'the end'!r}")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")

    def leave(self) -> None:
        self.depth -= 1

    # -- sums and products -----------------------------------------------------------------------------

    def arith(self) -> Node:
        self.enter()
        items: list[Node] = [self.term()]
        while self.peek().kind in ("op", "cmd") and self.peek().text in _ADDITIVE:
            op = self.next().text
            right = self.term()
            if op in ("pm", "mp"):
                left = items[0] if len(items) == 1 else Add(tuple(items))
                items = [PlusMinus(left, right, 1 if op == "pm" else -1)]
            else:
                items.append(Neg(right) if op == "-" else right)
        self.leave()
        return items[0] if len(items) == 1 else Add(tuple(items))

    def term(self) -> Node:
        negative = False
        if self.peek().kind == "op" and self.peek().text in ("+", "-"):
            negative = self.next().text == "-"
        if self.accept("pm"):
            return PlusMinus(None, self.product(), 1)
        if self.accept("mp"):
            return PlusMinus(None, self.product(), -1)
        product = self.product()
        return Neg(product) if negative else product

    def product(self) -> Node:
        node = self.money() or self.factor()
        while True:
            token = self.peek()
            if token.kind in ("op", "cmd") and token.text in _TIMES:
                self.next()
                node = times(node, self.signed_factor())
            elif token.kind in ("op", "cmd") and token.text in _DIVIDE:
                self.next()
                node = Div(node, self.signed_factor())
            elif token.kind == "cmd" and token.text in ("bmod", "mod", "pmod", "pod"):
                self.next()
                node = Opaque("mod", (node, self.signed_factor()))
            elif (unit := self.unit(node)) is not None:
                node = unit
            elif token.kind == "num" and token.spaced and isinstance(node, Quantity):
                node = Add((node, self.product()))  # "5 feet 6 inches"
            elif self.starts_factor(token):
                node = times(node, self.factor())
            else:
                return node

    def signed_factor(self) -> Node:
        if self.peek().kind == "op" and self.peek().text == "-":
            self.next()
            return Neg(self.factor())
        self.accept("+")
        return self.factor()

    def starts_factor(self, token: Token) -> bool:
        if token.kind == "num":
            if self.tokens[self.position - 1].text == "pi":
                return True
            raise Unreadable("two numbers side by side")
        if token.kind == "name":
            return self.word_separator(token) is False and token.text != "to"
        if token.kind == "begin":
            return True
        if token.kind == "op":
            return token.text in ("(", "{", "\\{") or (
                token.text == "|" and not self.in_bars and not self.in_builder
            )
        return token.kind == "cmd" and self.starts_symbol(token.text)

    def word_separator(self, token: Token) -> bool:
        word = token.text.casefold()
        return len(word) > 1 and (word in OR_WORDS or word in AND_WORDS) or word in ("和", "或")

    # -- powers ----------------------------------------------------------------------------------------

    def factor(self) -> Node:
        self.enter()
        node = self.primary()
        while True:
            token = self.peek()
            if token.kind != "op":
                if token.kind == "cmd" and token.text == "prime":
                    self.next()
                    node = _prime(node)
                    continue
                break
            if token.text == "!":
                self.next()
                if self.peek().text == "!" and not self.peek().spaced:
                    self.next()
                    node = Call("fact2", (node,))
                else:
                    node = Call("fact", (node,))
            elif token.text == "'":
                self.next()
                node = _prime(node)
            elif token.text == "^":
                self.next()
                node = self.power(node)
            else:
                break
        self.leave()
        return node

    def power(self, base: Node) -> Node:
        token = self.peek()
        braced = token.text == "{" and token.kind == "op"
        inner = self.peek(1) if braced else token
        if inner.kind == "cmd" and inner.text in ("circ", "degree"):
            self.position += 2 if braced else 1
            if braced:
                self.expect("}")
            return self.degrees(base)
        if inner.kind == "cmd" and inner.text == "prime":
            self.position += 2 if braced else 1
            if braced:
                self.expect("}")
            return _prime(base)
        if inner.kind in ("text", "name") and inner.text.strip() in ORDINALS:
            self.position += 2 if braced else 1
            if braced:
                self.expect("}")
            return base
        if inner.text in ("*", "+") and inner.kind == "op" and isinstance(base, Sym):
            self.position += 2 if braced else 1
            if braced:
                self.expect("}")
            return Sym(base.name + inner.text)  # N*, the natural numbers from one
        return Pow(base, self.exponent())

    def exponent(self) -> Node:
        token = self.peek()
        if token.kind == "op" and token.text in ("-", "+"):
            self.next()
            inner = self.exponent()
            return Neg(inner) if token.text == "-" else inner
        if token.kind == "op" and token.text == "{":
            return self.group()
        if token.kind == "name" and len(token.text) > 1:
            self.take_letter()
            return self.letter(token.text[0])
        node = self.primary()
        if self.peek().text == "^":
            self.next()
            node = Pow(node, self.exponent())
        if isinstance(node, Num) and node.value == 1 and self.peek().text == "/" and not self.peek().spaced:
            raise Unreadable("is x^1/2 a root or a half?")
        return node

    # -- functions -------------------------------------------------------------------------------------

    def function(self, name: str) -> Node:
        """The application of a named function whose name has just been consumed."""
        self.enter()
        exponent: Node | None = None
        base: Node | None = None
        while self.peek().text in ("^", "_"):
            if self.next().text == "^":
                exponent = self.exponent()
            else:
                base = self.exponent()
        if name == "sqrt" and self.peek().text == "[":
            root = self.root()
            return self.leave_with(root if exponent is None else Pow(root, exponent))
        if name in INVERSES and isinstance(exponent, Neg) and exponent.item == Num(Fraction(1), None, 1):
            name, exponent = INVERSES[name], None
        args = self.arguments(name)
        node = self.apply(name, args, base)
        if exponent is not None:
            node = Pow(node, exponent)
        return self.leave_with(node)

    def leave_with(self, node: Node) -> Node:
        self.leave()
        return node

    def root(self) -> Node:
        self.next()
        index = self.arith()
        self.expect("]")
        return Call("root", (self.token_argument(), index))

    def arguments(self, name: str) -> tuple[Node, ...]:
        token = self.peek()
        if name in ("sqrt", "cbrt") and not (token.kind == "op" and token.text == "("):
            return (self.token_argument(),)
        if token.kind == "op" and token.text == "(":
            inner: Any = self.bracketed()
            return inner.items if isinstance(inner, Seq) and inner.open == "(" else (inner,)
        if token.kind == "op" and token.text in ("{", "|"):
            return (self.factor(),)
        if name in ("max", "min", "gcd", "lcm") and token.text == "\\{":
            return self.braced_set().items
        self.in_call += 1
        negative = self.accept("-")
        node = self.factor()
        while self.starts_argument(self.peek()):
            node = times(node, self.factor())
        self.in_call -= 1
        return (Neg(node) if negative else node,)

    def starts_argument(self, token: Token) -> bool:
        if token.kind == "name" and token.text in FUNCTIONS:
            return False
        if token.kind == "cmd" and token.text in FUNCTIONS and token.text not in ("sqrt",):
            return False
        if token.kind == "num" or (token.kind == "op" and token.text == "("):
            return False
        return self.starts_factor(token)

    def apply(self, name: str, args: tuple[Node, ...], base: Node | None) -> Node:
        if name in ("sqrt", "cbrt"):
            if len(args) != 1 or base is not None:
                raise Unreadable(f"{name} of {len(args)} numbers")
            return Call("root", (args[0], Num(Fraction(2 if name == "sqrt" else 3))))
        if name == "exp" and len(args) == 1:
            return Pow(Const("e"), args[0])
        if name == "log" and (base is not None or len(args) == 2):
            return Call("logb", (args[0], base if base is not None else args[1]))
        if name == "log10":
            return Call("logb", (args[0], Num(Fraction(10))))
        if base is not None and name not in ("max", "min"):
            raise Unreadable(f"an index on {name}")
        several = ("gcd", "lcm", "max", "min", "binom", "mod")
        if (
            not args
            or (len(args) != 1 and name not in several)
            or (len(args) != 2 and name in ("binom", "mod"))
        ):
            raise Unreadable(f"{name} of {len(args)} numbers")
        return Call(name, args)


def _prime(node: Node) -> Node:
    if isinstance(node, Sym):
        return Sym(node.name + "'")
    if isinstance(node, Call):
        return Call(node.name + "'", node.args)
    raise Unreadable("a prime on something that is no symbol")
