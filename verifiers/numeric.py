"""Numbers with as many digits as it takes: evaluation in multiple precision, and decimals against exact
values.

The working precision grows with the size of the literals and exponents in an expression (its *height*),
so that tiny or huge numbers are never equal because they round alike. Two values count as equal when
they agree to `20 + 2·height` digits and again, at more than twice the precision, to more than twice as
many.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from verifiers.budget import Budget, TooExpensive, Undefined
from verifiers.nodes import (
    Add,
    Based,
    Call,
    Const,
    Div,
    Mul,
    Neg,
    Node,
    Num,
    Opaque,
    Percent,
    Pow,
    Quantity,
    Sym,
    children,
)

MAX_HEIGHT = 1500.0  # decimal digits
MAX_EXPONENT = 10**6
MIN_DIGITS = 6  # significant digits a decimal must give to stand for an exact value
_CONTEXTS = threading.local()


def context(digits: int) -> Any:
    """This thread's own multiprecision context at `digits` decimal digits."""
    if not hasattr(_CONTEXTS, "mp"):
        from mpmath.ctx_mp import MPContext

        _CONTEXTS.mp = MPContext()
    _CONTEXTS.mp.dps = digits
    return _CONTEXTS.mp


def height(node: Node) -> float:
    """A bound on the decimal digits that the literals and exponents of `node` can make a difference in.

    Raises `TooExpensive` past `MAX_HEIGHT`.
    """
    total = _height(node)
    if total > MAX_HEIGHT:
        raise TooExpensive(f"numbers of {total:.3g} digits")
    return total


def _digits(value: Fraction) -> float:
    bits = value.numerator.bit_length() + value.denominator.bit_length()
    return bits * 0.30103


def _height(node: Node) -> float:
    if isinstance(node, Num):
        return _digits(node.value)
    inner = sum(map(_height, children(node)))
    if isinstance(node, Pow):
        size = _size(node.exp)
        inner += size * (max(1.0, _height(node.base)) if size > 1 else 1.0)
    elif isinstance(node, Call) and node.name in ("fact", "binom", "fact2"):
        size = _size(node.args[0])
        inner += size * math.log10(size + 10)
    elif isinstance(node, Call) and node.name in ("sinh", "cosh", "tanh", "sin", "cos", "tan"):
        inner += _size(node.args[0])
    if inner > 1e300:
        raise TooExpensive("numbers too big to compare")
    return inner


def _size(node: Node) -> float:
    """About how big |node| can be; variables count as 4."""
    match node:
        case Num(value):
            if value.numerator.bit_length() - value.denominator.bit_length() > 900:
                raise TooExpensive("an exponent too big to evaluate")
            return abs(float(value))
        case Add(items):
            return sum(map(_size, items))
        case Mul(items):
            size = math.prod(map(_size, items))
        case Div(top, Num(value)) if value:
            size = _size(top) / max(1e-9, abs(float(value)))
        case Pow(base, exp):
            power = _size(exp) * math.log10(_size(base) + 1)
            if power > 300:
                raise TooExpensive("a tower of powers")
            size = 10**power
        case Call("fact", (arg,)):
            inside = _size(arg)
            if inside > 150:
                raise TooExpensive("a factorial in an exponent")
            size = math.gamma(inside + 1)
        case _:
            size = max([4.0, *map(_size, children(node))])
    if size > 1e300:
        raise TooExpensive("an exponent too big to evaluate")
    return size


class Evaluator:
    """Evaluates syntax at a point. `env` gives variables their values (exact rationals)."""

    def __init__(
        self, digits: int, env: Mapping[str, Fraction], budget: Budget, log_base: str = "10"
    ) -> None:
        self.mp = context(digits)
        self.digits, self.env, self.budget, self.log_base = digits, env, budget, log_base

    def of(self, node: Node) -> Any:
        """A real or complex multiprecision number. Raises `Undefined` or `TooExpensive`."""
        self.budget.spend(4 + self.digits // 20)
        mp = self.mp
        match node:
            case Num(value):
                return mp.mpf(value.numerator) / value.denominator
            case Sym(name):
                at = self.env.get(name)
                return self.unknown(name, []) if at is None else mp.mpf(at.numerator) / at.denominator
            case Const("pi"):
                return mp.pi + 0
            case Const("e"):
                return mp.e + 0
            case Const("i"):
                return mp.mpc(0, 1)
            case Neg(item):
                return -self.of(item)
            case Percent(item):
                return self.of(item) / 100
            case Quantity(item, unit) if unit.name == "°":
                return self.of(item) * mp.pi / 180
            case Add(items):
                return mp.fsum(self.of(item) for item in items)
            case Mul(items):
                return mp.fprod(self.of(item) for item in items)
            case Div(top, bottom):
                return self.divide(self.of(top), self.of(bottom))
            case Pow(base, exp):
                return self.power(self.of(base), self.of(exp), exp)
            case Call(name, args):
                return self.call(name, [self.of(arg) for arg in args])
            case Opaque():
                return self.unknown(repr(node), [])
            case Based(digits, base) if "." not in digits:
                return mp.mpf(int(digits, base))
        raise Undefined(f"{type(node).__name__} has no value")

    def divide(self, top: Any, bottom: Any) -> Any:
        if self.mp.fabs(bottom) < self.mp.mpf(10) ** (-self.digits // 2):
            raise Undefined("division by zero")
        return top / bottom

    def power(self, base: Any, exponent: Any, written: Node) -> Any:
        mp = self.mp
        if base == 0:
            if mp.re(exponent) > 0:
                return mp.mpf(0)
            raise Undefined("a power of zero")
        size = mp.fabs(exponent) * mp.fabs(mp.log(mp.fabs(base)))
        if size > MAX_EXPONENT or mp.fabs(exponent) > MAX_EXPONENT:
            raise TooExpensive("a power too big to evaluate")
        if mp.im(base) == 0 and mp.re(base) < 0 and mp.im(exponent) == 0:
            root = _odd_root(written)
            if root is not None:
                magnitude = mp.power(-mp.re(base), exponent)
                return -magnitude if root.numerator % 2 else magnitude
        return mp.power(base, exponent)

    def unknown(self, name: str, args: list[Any]) -> Any:
        """A reproducible stand-in value for a function or operator that is not known."""
        shown = "|".join([name, *(self.mp.nstr(arg, 12) for arg in args)])
        seed = int.from_bytes(hashlib.blake2b(shown.encode(), digest_size=6).digest(), "big")
        return self.mp.mpf(seed) / (1 << 46) + self.mp.mpf(1) / 7

    def call(self, name: str, args: list[Any]) -> Any:
        mp = self.mp
        simple = {"ln": mp.log, "abs": mp.fabs, "arg": mp.arg, "conj": mp.conj, "fact2": mp.fac2}
        try:
            if name == "root":
                return self.root(*args)
            if name in ("log", "logb"):
                base = args[1] if name == "logb" else mp.mpf(10) if self.log_base == "10" else mp.e
                return self.divide(mp.log(args[0]), mp.log(base))
            if name in ("fact", "binom"):
                if max(mp.fabs(arg) for arg in args) > MAX_EXPONENT:
                    raise TooExpensive("a factorial too big to evaluate")
                self.budget.spend(self.digits**2 // 40)  # the gamma function is slow in high precision
                return mp.factorial(args[0]) if name == "fact" else mp.binomial(*args)
            if name in ("floor", "ceil", "sgn", "max", "min", "gcd", "lcm"):
                return self.real_call(name, args)
            if name in simple and len(args) == 1:
                return simple[name](args[0])
            if name in _TRIGONOMETRIC and len(args) == 1:
                if mp.fabs(args[0]) > mp.mpf(10) ** 60:
                    raise TooExpensive("a trigonometric function of a huge number")
                return getattr(mp, name)(args[0])
        except (ValueError, ZeroDivisionError, mp.NoConvergence) as error:
            raise Undefined(f"{name}: {error}") from error
        except OverflowError as error:
            raise TooExpensive(f"{name}: {error}") from error
        return self.unknown(name, args)

    def root(self, value: Any, index: Any) -> Any:
        mp = self.mp
        if mp.im(value) == 0 and mp.re(value) < 0 and mp.isint(index) and int(mp.re(index)) % 2:
            return -mp.power(-mp.re(value), 1 / index)
        if value == 0:
            return mp.mpf(0)
        return mp.sqrt(value) if index == 2 else mp.power(value, self.divide(mp.mpf(1), index))

    def real_call(self, name: str, args: list[Any]) -> Any:
        mp = self.mp
        if any(mp.im(arg) != 0 for arg in args):
            raise Undefined(f"{name} of a complex number")
        values = [mp.re(arg) for arg in args]
        if name in ("max", "min"):
            return max(values) if name == "max" else min(values)
        if name == "sgn":
            return mp.sign(values[0])
        if name in ("gcd", "lcm"):
            if not all(mp.isint(v) and abs(v) < 10**15 for v in values):
                return self.unknown(name, values)
            integers = [int(v) for v in values]
            return mp.mpf(math.gcd(*integers) if name == "gcd" else math.lcm(*integers))
        near = mp.nint(values[0])
        if abs(values[0] - near) < mp.mpf(10) ** (-self.digits // 2):
            return near
        return mp.floor(values[0]) if name == "floor" else mp.ceil(values[0])


_TRIGONOMETRIC = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh coth sech csch asin acos atan acot asec acsc asinh acosh "
    "atanh".split()
)


def _odd_root(written: Node) -> Fraction | None:
    """The exponent p/q with odd q > 1 that `written` is, or None."""
    value: Fraction | None = None
    negative = isinstance(written, Neg)
    inner = written.item if isinstance(written, Neg) else written
    if isinstance(inner, Num):
        value = inner.value
    elif isinstance(inner, Div) and isinstance(inner.top, Num) and isinstance(inner.bottom, Num):
        value = inner.top.value / inner.bottom.value if inner.bottom.value else None
    if value is None or value.denominator % 2 == 0 or value.denominator == 1:
        return None
    return -value if negative else value


def decimal_agrees(value: Fraction, places: int, exact: Fraction) -> bool:
    """Whether the decimal `value`, given to `places` places, is `exact` rounded or cut off there."""
    unit = Fraction(1, 10**places) if places >= 0 else Fraction(10) ** -places
    if (value < 0) != (exact < 0):
        return False
    rest = abs(exact) - abs(value)
    return -unit / 2 <= rest < unit


def to_fraction(mp: Any, value: Any) -> Fraction | None:
    """A real multiprecision number as an exact fraction (of its rounding), None when complex."""
    if mp.im(value) != 0 and abs(mp.im(value)) > abs(mp.re(value)) * mp.mpf(10) ** (-mp.dps // 2):
        return None
    sign, mantissa, exponent, _ = mp.mpf(mp.re(value))._mpf_
    if abs(exponent) > 100_000:
        raise TooExpensive("a number too big to compare")
    return (-1) ** sign * mantissa * Fraction(2) ** exponent
