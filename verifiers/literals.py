"""Number literals of the answer grammar: integers, decimals, repeating decimals, mixed numbers, bases."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from verifiers.nodes import Based, Node, Num, Text
from verifiers.tables import FRACTIONS
from verifiers.text import Unreadable

MAX_DIGITS = 4000
MIN_DIGITS = 6  # before dots, for a decimal that does not repeat


def number(text: str) -> Num:
    """A literal such as `12`, `.185`, `16.0`, `1.5e-7`. Raises `Unreadable` when it is too long to hold."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 5:
        raise Unreadable("a number too long to read")
    whole, point, fraction = mantissa.partition(".")
    shift = int(exponent) if exponent else 0
    if abs(shift) > MAX_DIGITS:
        raise Unreadable("an exponent too big to hold")
    value = Fraction(int(whole + fraction or "0"), 10 ** len(fraction)) * Fraction(10) ** shift
    if not point:
        return Num(value, None, len(whole.lstrip("0")))
    return Num(value, len(fraction) - shift, len((whole + fraction).lstrip("0")))


def repeating(whole: str, fixed: str, cycle: str) -> Num:
    """`whole.fixed` followed by `cycle` for ever, exactly."""
    if len(whole) + len(fixed) + len(cycle) > MAX_DIGITS:
        raise Unreadable("a number too long to read")
    nines = 10 ** len(cycle) - 1
    tail = Fraction(int(cycle), nines) if nines else Fraction(0)
    value = int(whole or "0") + (int(fixed or "0") + tail) / 10 ** len(fixed)
    return Num(Fraction(value))


class Literals:
    """Mixin of the parser: everything that begins with a number token."""

    if TYPE_CHECKING:
        position: int

        def __getattr__(self, name: str) -> Any: ...

    def literal(self) -> Node:
        token = self.next()
        if token.text.endswith("."):
            return self.repeating_literal(token.text[:-1], "")
        after = self.peek()
        if "." in token.text and (
            (after.kind == "cmd" and after.text in ("overline", "bar", "dot", "ldots", "dots", "cdots"))
            or (after.kind == "op" and after.text == "...")
        ):
            whole, _, fixed = token.text.partition(".")
            return self.repeating_literal(whole, fixed)
        if after.kind == "op" and after.text == "_":
            self.next()
            return self.based(token.text)
        value = number(token.text)
        if "." not in token.text and "e" not in token.text.lower():
            return self.mixed(value)
        return value

    def repeating_literal(self, whole: str, fixed: str) -> Node:
        mark = self.next()
        if mark.text in ("ldots", "dots", "cdots", "..."):
            for length in range(1, len(fixed) // 2 + 1):
                for start in range(len(fixed) - 2 * length + 1):
                    cycle = fixed[start : start + length]
                    tail = fixed[start:]
                    if len(tail) >= max(2 * length, 3) and (cycle * len(tail)).startswith(tail):
                        return repeating(whole, fixed[:start], cycle)
            if len((whole + fixed).lstrip("0")) < MIN_DIGITS:
                raise Unreadable("digits that go on in an unknown way")
            return number(f"{whole}.{fixed}")
        if mark.text == "(":
            digits = self.next().text
            self.expect(")")
        else:
            braced = self.accept("{")
            digits = self.next().text
            if braced:
                self.expect("}")
        if not digits.isdigit() or len(digits) > 200:
            raise Unreadable("a repeating decimal without digits")
        return repeating(whole, fixed, digits)

    def mixed(self, value: Num) -> Node:
        """`4 4/9` and `4\\frac{4}{9}` as people read them: an integer and a proper fraction, added."""
        after = self.peek()
        if after.kind == "num" and after.spaced and after.text.isdigit():
            if self.peek(1).text == "/" and self.peek(2).kind == "num" and self.peek(2).text.isdigit():
                top, bottom = int(after.text), int(self.peek(2).text)
                if 0 < top < bottom and self.peek(3).text not in ("^", "!", "_"):
                    self.position += 3
                    return Num(value.value + Fraction(top, bottom))
            return value
        inside = self.peek(2) if self.peek(1).text == "{" else self.peek(1)
        if after.kind == "cmd" and after.text in FRACTIONS and inside.kind == "num":
            start = self.position
            self.next()
            top_node, bottom_node = self.token_argument(), self.token_argument()
            if isinstance(top_node, Num) and isinstance(bottom_node, Num):
                top_value, bottom_value = top_node.value, bottom_node.value
                whole = top_value.denominator == bottom_value.denominator == 1
                if (
                    whole
                    and 0 < top_value < bottom_value
                    and value.value
                    and self.peek().text not in ("^", "!")
                ):
                    return Num(value.value + top_value / bottom_value)
            self.position = start
        return value

    def based(self, digits: str) -> Node:
        self.enter()
        index = self.exponent() if self.peek().kind != "text" else self.primary()
        self.leave()
        names = ("two three four five six seven eight nine ten eleven twelve").split()
        if isinstance(index, Text) and index.words in names:
            index = Num(Fraction(names.index(index.words) + 2))
        if not isinstance(index, Num) or index.value.denominator != 1 or not 2 <= index.value <= 36:
            raise Unreadable("a number with a strange index")
        base = int(index.value)
        if len(digits) > MAX_DIGITS:
            raise Unreadable("a number too long to read")
        if any(int(d, 36) >= base for d in digits.replace(".", "")):
            raise Unreadable(f"{digits} has digits that base {base} has not")
        return Based(digits.lstrip("0") or "0", base) if base != 10 else number(digits)
