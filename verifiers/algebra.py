"""Exact arithmetic on answers: quotients of polynomials over a fixed kind of generators.

A monomial is a product of generators to rational powers: variables, π, e, i, roots of primes (`p:3` to
a power in (0, 1)), powers with symbolic exponents, logarithms of primes, and any other function as an
atom named by its argument. Roots of primes are linearly independent over Q (Besicovitch 1940), so where
only variables, one of π and e, i and such roots occur, a difference is zero exactly when no term is
left: equality and inequality are both proved. With other atoms a vanishing difference still proves
equality; otherwise the numeric test (`verifiers.numeric`) decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import gcd, isqrt
from typing import Any

from verifiers.budget import Budget, TooExpensive, Undefined

Monomial = tuple[tuple[str, Fraction], ...]
Poly = dict[Monomial, Fraction]
ONE: Poly = {(): Fraction(1)}
MAX_BITS = 1 << 16
MAX_TERMS = 300
_PRIME_LIMIT = 1 << 12


def power_of(value: Fraction, exponent: int) -> Fraction:
    """`value ** exponent`, refused before it is built when it would not fit. Raises `Undefined` for 0⁻ⁿ."""
    if value == 0 and exponent < 0:
        raise Undefined("division by zero")
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if bits > 1 and bits * abs(exponent) > MAX_BITS:
        raise TooExpensive("a power too big to hold")
    if abs(exponent) > MAX_BITS:  # of 0, 1 or -1
        exponent = exponent % 2 + 2
    return value**exponent


def factor(number: int) -> tuple[dict[int, int], int]:
    """Small prime factors of a positive integer, and the rest that has none (1, a prime, or unfactored)."""
    if number.bit_length() > MAX_BITS:
        raise TooExpensive("a number too big to factor")
    found: dict[int, int] = {}
    prime = 2
    while prime * prime <= number and prime < _PRIME_LIMIT:
        while number % prime == 0:
            found[prime] = found.get(prime, 0) + 1
            number //= prime
        prime += 1 + (prime > 2)
    if 1 < number < _PRIME_LIMIT**2:
        found[number] = found.get(number, 0) + 1
        number = 1
    return found, number


def root_of(value: int, power: Fraction) -> tuple[Fraction, Monomial, bool]:
    """`value ** power` of a positive integer as (rational, roots of primes); the flag says that it was fully
    factored."""
    primes, rest = factor(value)
    complete = rest == 1
    if not complete:
        exact = isqrt(rest)
        if exact * exact == rest:
            primes, complete = dict(primes) | {exact: 2}, True
        else:
            primes = dict(primes) | {rest: 1}
    rational = Fraction(1)
    roots: dict[str, Fraction] = {}
    for prime, times in primes.items():
        exponent = power * times
        whole = exponent.numerator // exponent.denominator
        rational *= power_of(Fraction(prime), whole)
        if exponent - whole:
            roots[f"p:{prime}"] = exponent - whole
    return rational, tuple(sorted(roots.items())), complete


class Algebra:
    """Polynomial operations that share a budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def add(self, a: Poly, b: Poly, sign: int = 1) -> Poly:
        self.budget.spend(len(b) + 1)
        total = dict(a)
        for monomial, coefficient in b.items():
            value = total.get(monomial, Fraction(0)) + sign * coefficient
            if value:
                total[monomial] = value
            else:
                total.pop(monomial, None)
        return total

    def multiply(self, a: Poly, b: Poly) -> Poly:
        if a == ONE:
            return b
        if b == ONE:
            return a
        self.budget.spend(6 * len(a) * len(b) + 1)
        total: Poly = {}
        for ma, ca in a.items():
            for mb, cb in b.items():
                monomial, scale = combine(ma, mb)
                if max((ca * cb).numerator.bit_length(), (ca * cb).denominator.bit_length()) > 2 * MAX_BITS:
                    raise TooExpensive("a coefficient too big to hold")
                value = total.get(monomial, Fraction(0)) + ca * cb * scale
                if value:
                    total[monomial] = value
                else:
                    total.pop(monomial, None)
        if len(total) > MAX_TERMS:
            raise TooExpensive("an expansion with too many terms")
        return total

    def power(self, base: Poly, exponent: int) -> Poly:
        """`base ** exponent` for exponent >= 0."""
        if len(base) == 1:
            ((monomial, coefficient),) = base.items()
            raised, scale = normal((gen, e * exponent) for gen, e in monomial)
            return {raised: power_of(coefficient, exponent) * scale}
        if exponent > 40:
            raise TooExpensive("a high power of a sum")
        result = ONE
        for _ in range(exponent):
            result = self.multiply(result, base)
        return result


def normal(pairs: Any) -> tuple[Monomial, Fraction]:
    """The monomial of (generator, exponent) pairs and the rational that falls out: i² = −1, √3·√3 = 3."""
    scale = Fraction(1)
    kept: list[tuple[str, Fraction]] = []
    for gen, exponent in pairs:
        if not exponent:
            continue
        if gen == "i":
            turns = exponent % 4
            if turns.denominator != 1:
                raise TooExpensive("a fractional power of i")
            if turns >= 2:
                scale, turns = -scale, turns - 2
            if turns:
                kept.append((gen, turns))
            continue
        if gen.startswith("p:"):
            whole = exponent.numerator // exponent.denominator
            if whole:
                scale *= power_of(Fraction(int(gen[2:])), whole)
            exponent -= whole
            if not exponent:
                continue
        kept.append((gen, exponent))
    return tuple(sorted(kept)), scale


def combine(a: Monomial, b: Monomial) -> tuple[Monomial, Fraction]:
    """The product of two monomials, and the rational that falls out of it."""
    if not a:
        return b, Fraction(1)
    if not b:
        return a, Fraction(1)
    merged = dict(a)
    for gen, exponent in b:
        merged[gen] = merged.get(gen, Fraction(0)) + exponent
    return normal(merged.items())


@dataclass(frozen=True)
class Quotient:
    """num / den; `free` while every generator is independent of the others."""

    num: Poly
    den: Poly

    @classmethod
    def of(cls, value: Fraction) -> Quotient:
        return cls({(): value} if value else {}, ONE)

    @classmethod
    def generator(cls, name: str, exponent: Fraction = Fraction(1)) -> Quotient:
        return cls({((name, exponent),): Fraction(1)}, ONE)

    @property
    def rational(self) -> Fraction | None:
        """The value, when it is a rational number written without generators."""
        if not self.num:
            return Fraction(0)
        if len(self.num) == 1 and len(self.den) == 1 and () in self.num and () in self.den:
            return self.num[()] / self.den[()]
        return None

    @property
    def monomial(self) -> tuple[Fraction, Monomial] | None:
        """(coefficient, monomial) when numerator and denominator have one term each."""
        if len(self.num) != 1 or len(self.den) != 1:
            return None
        ((mn, cn),) = self.num.items()
        ((md, cd),) = self.den.items()
        inverse, scale = normal((gen, -e) for gen, e in md)
        merged, more = combine(mn, inverse)
        return cn / cd * scale * more, merged

    def generators(self) -> frozenset[str]:
        return frozenset(gen for poly in (self.num, self.den) for mono in poly for gen, _ in mono)

    def key(self) -> str:
        """A name for this quotient; equal names mean equal values, not the other way round."""
        return (
            f"{poly_key(self.num)}" if self.den == ONE else f"({poly_key(self.num)})/({poly_key(self.den)})"
        )


def number_key(value: Fraction) -> str:
    """A name for a rational; hexadecimal where the decimal digits would be too many to write."""
    if value.numerator.bit_length() + value.denominator.bit_length() < 2000:
        return str(value)
    return f"{value.numerator:#x}/{value.denominator:#x}"


def poly_key(poly: Poly) -> str:
    """A name for a polynomial, unique up to the order of its terms."""
    terms = sorted((repr([(g, number_key(e)) for g, e in mono]), number_key(c)) for mono, c in poly.items())
    return "+".join(c + m for m, c in terms) or "0"


def content(poly: Poly) -> Fraction:
    """The positive rational c for which poly / c has coprime integer coefficients."""
    numerators, denominators = 0, 1
    for coefficient in poly.values():
        numerators = gcd(numerators, coefficient.numerator)
        denominators = denominators * coefficient.denominator // gcd(denominators, coefficient.denominator)
    return Fraction(numerators, denominators) if numerators else Fraction(1)


def independent(generators: frozenset[str]) -> bool:
    """Whether a polynomial in these generators vanishes only when all its coefficients do."""
    transcendental = 0
    for gen in generators:
        kind = gen.partition(":")[0]
        if gen in ("pi", "e"):
            transcendental += 1
        elif kind not in ("s", "p") and gen != "i":
            return False
        elif kind == "p" and int(gen[2:]) >= _PRIME_LIMIT**2:
            return False  # not known to be prime
    return transcendental <= 1


def proportional(algebra: Algebra, a: Poly, b: Poly) -> Fraction | None:
    """The rational c with a = c·b, or None."""
    algebra.budget.spend(len(a) + len(b))
    if not a or len(a) != len(b):
        return None
    monomial = min(a)
    if monomial not in b:
        return None
    ratio = a[monomial] / b[monomial]
    if all(b.get(mono, 0) * ratio == coefficient for mono, coefficient in a.items()):
        return ratio
    return None
