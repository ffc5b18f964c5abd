"""Quantities in the answer grammar: money before a number; units, percent and number words behind one."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from verifiers.lexer import Token
from verifiers.nodes import Div, Mul, Neg, Node, Num, Percent, Quantity, Sym
from verifiers.tables import FUNCTIONS, MULTIPLIERS
from verifiers.text import Unreadable
from verifiers.units import ATTACHED, DEGREE, KNOWN, SINGLE, read_unit, singular

ORDINALS = frozenset({"th", "st", "nd", "rd"})


class Quantities:
    """Mixin of the parser: what may stand around a number to make it a quantity."""

    if TYPE_CHECKING:
        position: int
        in_call: int

        def __getattr__(self, name: str) -> Any: ...

    def money(self) -> Node | None:
        token = self.peek()
        names = {"$": "$", "\\$": "$", "euro": "€", "pounds": "£", "yen": "¥", "cent": "¢"}
        if token.kind in ("op", "cmd") and token.text in names:
            self.next()
            if self.peek().text == "{":
                raise Unreadable("a dollar sign before a brace")
            amount = self.factor()
            while self.starts_money(self.peek()):
                amount = times(amount, self.factor())
            name = names[token.text]
            unit = read_unit(name)
            assert unit is not None
            return self.money_per(Quantity(self.multiplier(amount), unit))
        return None

    def starts_money(self, token: Token) -> bool:
        return token.kind == "cmd" and token.text in ("frac", "dfrac", "vfrac", "pi", "sqrt")

    def money_per(self, amount: Quantity) -> Node:
        """`$18 every day`, `$5 per hour`: words that say what the money is for change nothing."""
        if self.peek().kind in ("text", "name") and not self.word_separator(self.peek()):
            self.unit_phrase(amount.item)
        elif self.peek().text == "/" and self.peek(1).kind in ("text", "name"):
            self.next()
            self.unit_phrase(amount.item)
        return amount

    def multiplier(self, node: Node) -> Node:
        token = self.peek()
        word = token.text.strip().casefold()
        if (
            token.kind in ("name", "text")
            and word in MULTIPLIERS
            and (word != "k")
            and isinstance(node, (Num, Neg))
        ):
            self.next()
            factor = Fraction(MULTIPLIERS[word])
            return _scale(node, factor)
        return node

    def unit(self, node: Node) -> Node | None:
        """`node` with the unit that follows it, or None when no unit follows."""
        token = self.peek()
        if token.kind == "op" and token.text in ("%", "\\%"):
            self.next()
            return Percent(node)
        if token.kind == "cmd" and token.text in ("permil", "textperthousand"):
            self.next()
            return Percent(Div(node, Num(Fraction(10))))
        if token.kind == "cmd" and token.text in ("euro", "pounds", "yen", "cent", "textdegree", "degree"):
            self.next()
            names = {"euro": "€", "pounds": "£", "yen": "¥", "cent": "¢"}
            unit = read_unit(names.get(token.text, "°"))
            assert unit is not None
            return Quantity(node, unit)
        if token.kind == "cmd" and token.text in ("frac", "dfrac", "tfrac"):
            return self.unit_fraction(node)
        if token.kind not in ("text", "name") or isinstance(node, (Sym, Quantity, Percent)):
            return None
        if token.kind == "name" and not self.unit_name(token, node):
            return None
        if token.kind in ("text", "name") and token.text.strip() == "to":
            return None  # a ratio, "2 to 1"
        if token.kind == "text" and self.word_separator(Token("name", token.text.strip(" ,"))):
            return None
        scaled = self.multiplier(node)
        if scaled is not node:
            return scaled if self.peek().kind not in ("text", "name") else self.unit(scaled) or scaled
        return self.unit_phrase(node)

    def unit_fraction(self, node: Node) -> Node | None:
        """`60 \\frac{km}{h}`."""
        ahead = [self.peek(k) for k in range(1, 7)]
        if [t.text for t in (*ahead[::3], *ahead[2::3])] != ["{", "{", "}", "}"]:
            return None
        names = [ahead[1].text, ahead[4].text]
        if not all(t.kind in ("name", "text") for t in (ahead[1], ahead[4])) or isinstance(node, Quantity):
            return None
        if singular(names[0]) not in KNOWN or singular(names[1]) not in KNOWN or len(names[0]) < 2:
            return None
        unit = read_unit("/".join(names))
        if unit is None:
            return None
        self.position += 7
        return Quantity(node, unit)

    def unit_name(self, token: Token, node: Node) -> bool:
        """Whether a bare name behind a number is a unit rather than a product of symbols."""
        word = token.text
        if not token.spaced:
            return word.casefold() in ATTACHED or not word.isascii()
        if word == "min" and self.peek(1).kind == "end":
            return True
        if word in FUNCTIONS or self.word_separator(token) or self.in_call:
            return False
        if len(word) == 1 and word.isascii():
            after = self.peek(1)
            return (
                word in SINGLE and after.kind in ("end", "op") and after.text not in ("(", "+", "-", "=", "^")
            )
        if word.casefold() in MULTIPLIERS or singular(word) in KNOWN:
            return True
        return len(word) > 2 or not word.isascii()

    def unit_phrase(self, node: Node) -> Node:
        pieces: list[str] = []
        while True:
            token = self.peek()
            if token.kind in ("text", "name") and not self.word_separator(
                Token("name", token.text.strip(" ,"))
            ):
                pieces.append((" " if pieces and token.spaced else "") + self.next().text.strip())
            elif token.kind == "op" and token.text == "^" and pieces:
                self.next()
                pieces.append("^" + self.small_exponent())
            elif token.text == "/" and self.peek(1).kind in ("text", "name"):
                self.next()
                pieces.append("/")
            elif token.text in ("cdot", "-") and self.peek(1).kind in ("text", "name") and pieces:
                self.next()
                pieces.append("-")
            elif token.text == "." and self.peek(1).kind in ("end", "text", "name"):
                self.next()
            else:
                break
        phrase = "".join(pieces)
        if phrase.casefold() in ORDINALS:
            return node
        if phrase.casefold() in ("percent", "per cent", "pct"):
            return Percent(node)
        unit = read_unit(phrase)
        if unit is None:
            raise Unreadable(f"{phrase!r} is no unit")
        return Quantity(node, unit)

    def small_exponent(self) -> str:
        braced = self.accept("{")
        sign = "-" if self.accept("-") else ""
        token = self.next()
        if token.kind != "num" or not token.text.isdigit() or len(token.text) > 1:
            raise Unreadable("a unit with a strange exponent")
        if braced:
            self.expect("}")
        return sign + token.text

    def degrees(self, base: Node) -> Node:
        scale = self.peek()
        if scale.kind in ("name", "text") and scale.text.strip() in ("C", "F"):
            self.next()
            unit = read_unit("celsius" if scale.text.strip() == "C" else "fahrenheit")
            assert unit is not None
            return Quantity(base, unit)
        return Quantity(base, DEGREE)


def _scale(node: Node, factor: Fraction) -> Node:
    if isinstance(node, Neg):
        return Neg(_scale(node.item, factor))
    assert isinstance(node, Num)
    return Num(node.value * factor)


def times(left: Node, right: Node) -> Node:
    if isinstance(left, Mul):
        return Mul((*left.items, right))
    return Mul((left, right))
