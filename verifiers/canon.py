"""From syntax to exact algebra: the quotient of polynomials that an expression is."""

from __future__ import annotations

from fractions import Fraction
from math import comb, factorial, gcd

from verifiers.algebra import (
    ONE,
    Algebra,
    Monomial,
    Poly,
    Quotient,
    content,
    factor,
    normal,
    number_key,
    root_of,
)
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
)

MAX_FACTORIAL = 3000
_POSITIVE = ("pi", "e", "p:")


class NotScalar(Exception):
    """The node is no single number or expression (a set, a relation, words …)."""


class Canon:
    """Builds `Quotient`s under a budget. `degrees` values inside functions are converted to radians."""

    def __init__(self, budget: Budget, log_base: str = "10") -> None:
        self.budget = budget
        self.algebra = Algebra(budget)
        self.log_base = log_base  # how "log" without a base is read

    def of(self, node: Node) -> Quotient:
        """The quotient of `node`. Raises `Undefined`, `TooExpensive` or `NotScalar`."""
        self.budget.spend(1)
        match node:
            case Num(value):
                return Quotient.of(value)
            case Sym(name):
                return Quotient.generator(f"s:{name}")
            case Const("pi") | Const("e") | Const("i"):
                return Quotient.generator(node.name)
            case Neg(item):
                return self.scale(self.of(item), Fraction(-1))
            case Percent(item):
                return self.scale(self.of(item), Fraction(1, 100))
            case Quantity(item, unit) if unit.name == "°":
                return self.multiply(self.of(item), self.degree())
            case Add(items):
                total = Quotient.of(Fraction(0))
                for item in items:
                    total = self.add(total, self.of(item))
                return total
            case Mul(items):
                product = Quotient.of(Fraction(1))
                for item in items:
                    product = self.multiply(product, self.of(item))
                return product
            case Div(top, bottom):
                return self.multiply(self.of(top), self.inverse(self.of(bottom)))
            case Pow(base, exp):
                return self.power(base, exp)
            case Call(name, args):
                return self.call(name, args)
            case Opaque():
                return Quotient.generator(f"o:{opaque_key(node)}")
            case Based(digits, base) if "." not in digits:
                return Quotient.of(Fraction(int(digits, base)))
        raise NotScalar(type(node).__name__)

    def degree(self) -> Quotient:
        return self.scale(Quotient.generator("pi"), Fraction(1, 180))

    # -- field operations ------------------------------------------------------------------------------

    def scale(self, q: Quotient, by: Fraction) -> Quotient:
        return Quotient({m: c * by for m, c in q.num.items()}, q.den) if by else Quotient.of(Fraction(0))

    def add(self, a: Quotient, b: Quotient) -> Quotient:
        if a.den == b.den:
            return self.tidy(self.algebra.add(a.num, b.num), a.den)
        multiply = self.algebra.multiply
        num = self.algebra.add(multiply(a.num, b.den), multiply(b.num, a.den))
        return self.tidy(num, multiply(a.den, b.den))

    def multiply(self, a: Quotient, b: Quotient) -> Quotient:
        return self.tidy(self.algebra.multiply(a.num, b.num), self.algebra.multiply(a.den, b.den))

    def inverse(self, q: Quotient) -> Quotient:
        if not q.num:
            raise Undefined("division by zero")
        return self.tidy(q.den, q.num)

    def tidy(self, num: Poly, den: Poly) -> Quotient:
        """Constant and monomial denominators go into the numerator."""
        if not den:
            raise Undefined("division by zero")
        if den == ONE or not num:
            return Quotient(num, ONE)
        if len(den) == 1:
            ((mono, c),) = den.items()
            inverse, scale = normal((gen, -e) for gen, e in mono)
            return Quotient(self.algebra.multiply(num, {inverse: scale / c}), ONE)
        if num == den:
            return Quotient(ONE, ONE)
        return Quotient(num, den)

    # -- powers ----------------------------------------------------------------------------------------

    def power(self, base: Node, exp: Node) -> Quotient:
        exponent = self.of(exp)
        rational = exponent.rational
        if rational is not None:
            return self.rational_power(self.of(base), rational)
        return self.symbolic_power(base, exponent)

    def rational_power(self, q: Quotient, exponent: Fraction) -> Quotient:
        if exponent == 0:
            if not q.num:
                raise Undefined("0 to the power 0")
            return Quotient.of(Fraction(1))
        if exponent < 0:
            return self.inverse(self.rational_power(q, -exponent))
        if not q.num:
            return q
        if exponent.denominator == 1:
            times = exponent.numerator
            return self.tidy(self.algebra.power(q.num, times), self.algebra.power(q.den, times))
        return self.root(q, exponent)

    def root(self, q: Quotient, exponent: Fraction) -> Quotient:
        """`q ** exponent` for a fractional exponent > 0: exact where that is safe, an atom elsewhere."""
        value = q.rational
        if value is not None:
            return self.rational_root(value, exponent)
        mono = q.monomial
        if mono is not None and mono[0] > 0:
            coefficient, gens = mono
            safe = all(g.startswith(_POSITIVE) for g, _ in gens) or (len(gens) == 1 and gens[0][1] == 1)
            if safe and gens[0][0] != "i":
                raised, scale = normal((g, e * exponent) for g, e in gens)
                return self.multiply(
                    self.rational_root(coefficient, exponent), Quotient({raised: scale}, ONE)
                )
        if len(q.den) == 1 and q.den == ONE:
            part = content(q.num)
            primitive = Quotient({m: c / part for m, c in q.num.items()}, ONE)
            atom = Quotient.generator(f"r:{exponent.denominator}:{primitive.key()}", exponent)
            return self.multiply(self.rational_root(part, exponent), self.atom_power(atom, primitive))
        return Quotient.generator(f"r:{exponent.denominator}:{q.key()}", exponent)

    def atom_power(self, atom: Quotient, inside: Quotient) -> Quotient:
        """A root with the whole powers of its radicand taken out: (√a)³ = a√a."""
        (((gen, exponent),), _) = next(iter(atom.num.items()))
        whole = exponent.numerator // exponent.denominator
        if not whole:
            return atom
        rest = Quotient.generator(gen, exponent - whole)
        return self.multiply(rest, self.rational_power(inside, Fraction(whole)))

    def rational_root(self, value: Fraction, exponent: Fraction) -> Quotient:
        if value == 0:
            return Quotient.of(Fraction(0))
        sign = Quotient.of(Fraction(1))
        if value < 0:
            value = -value
            if exponent.denominator % 2:
                sign = Quotient.of(Fraction(-1 if exponent.numerator % 2 else 1))
            elif exponent.denominator == 2:
                sign = Quotient({normal([("i", Fraction(exponent.numerator))])[0]: Fraction(1)}, ONE)
                sign = self.scale(sign, normal([("i", Fraction(exponent.numerator))])[1])
            else:
                return Quotient.generator(f"r:{exponent.denominator}:{number_key(-value)}", exponent)
        top, top_roots, _ = root_of(value.numerator, exponent)
        bottom, bottom_roots, _ = root_of(value.denominator, -exponent)
        roots, scale = normal([*top_roots, *bottom_roots])
        return self.multiply(sign, Quotient({roots: top * bottom * scale}, ONE))

    def symbolic_power(self, base: Node, exponent: Quotient) -> Quotient:
        """`base ** exponent` with variables or constants in the exponent, split over its terms."""
        bases: list[tuple[str, Fraction]] = []
        value = None if base == Const("e") else self.of(base)
        if value is None:
            bases = [("e", Fraction(1))]
        elif value.rational is not None and value.rational > 0:
            for number, sign in ((value.rational.numerator, 1), (value.rational.denominator, -1)):
                primes, rest = factor(number)
                bases += [(str(p), Fraction(sign * k)) for p, k in primes.items()]
                bases += [(str(rest), Fraction(sign))] if rest > 1 else []
        elif value.rational is not None and value.rational == 0:
            raise Undefined("0 to a symbolic power")
        else:
            bases = [(value.key(), Fraction(1))]
        if exponent.den != ONE:
            gens = [(f"w:{name}:{exponent.key()}", weight) for name, weight in bases]
            return Quotient({normal(gens)[0]: Fraction(1)}, ONE)
        product = Quotient.of(Fraction(1))
        for mono, coefficient in exponent.num.items():
            for name, weight in bases:
                product = self.multiply(product, self.one_power(name, weight * coefficient, mono, value))
        return product

    def one_power(self, name: str, weight: Fraction, mono: Monomial, value: Quotient | None) -> Quotient:
        if not mono:
            if name == "e":
                return Quotient.generator("e", weight)
            if name.isdigit():
                return self.rational_power(Quotient.of(Fraction(int(name))), weight)
            assert value is not None
            return self.rational_power(value, weight)
        return Quotient.generator(f"w:{name}:{[(g, number_key(e)) for g, e in mono]}", weight)

    # -- functions -------------------------------------------------------------------------------------

    def call(self, name: str, args: tuple[Node, ...]) -> Quotient:
        if name == "root":
            index = self.of(args[1]).rational
            if index is None or index == 0:
                return self.power(args[0], Div(Num(Fraction(1)), args[1]))
            return self.rational_power(self.of(args[0]), 1 / index)
        values = [self.of(arg) for arg in args]
        numbers = [v.rational for v in values]
        if numbers and all(n is not None for n in numbers):
            exact = self.exact_call(name, [n for n in numbers if n is not None])
            if exact is not None:
                return Quotient.of(exact)
        if name in ("ln", "log", "logb"):
            return self.logarithm(name, values)
        if name == "abs" and values[0].num:
            values = [self.unsigned(values[0])]
        return Quotient.generator(f"f:{name}:{'|'.join(v.key() for v in values)}")

    def unsigned(self, q: Quotient) -> Quotient:
        leading = q.num[min(q.num)]
        return self.scale(q, Fraction(-1)) if leading < 0 else q

    def exact_call(self, name: str, numbers: list[Fraction]) -> Fraction | None:
        """Functions whose value at rationals is rational."""
        first = numbers[0]
        whole = all(n.denominator == 1 for n in numbers)
        if name == "abs":
            return abs(first)
        if name in ("floor", "ceil"):
            return Fraction(first.__floor__() if name == "floor" else first.__ceil__())
        if name in ("max", "min"):
            return max(numbers) if name == "max" else min(numbers)
        if name == "sgn":
            return Fraction((first > 0) - (first < 0))
        if not whole:
            return None
        if name == "fact":
            if first < 0:
                raise Undefined("factorial of a negative integer")
            if first > MAX_FACTORIAL:
                raise TooExpensive("a factorial too big to hold")
            return Fraction(factorial(first.numerator))
        if name == "gcd":
            return Fraction(gcd(*(n.numerator for n in numbers)))
        if name == "binom" and len(numbers) == 2:
            n, k = first.numerator, numbers[1].numerator
            if not 0 <= n <= MAX_FACTORIAL:
                raise TooExpensive("a binomial coefficient out of range")
            return Fraction(comb(n, k) if k >= 0 else 0)
        return None

    def logarithm(self, name: str, values: list[Quotient]) -> Quotient:
        top = self.natural_log(values[0])
        if name == "ln" or (name == "log" and self.log_base == "e"):
            return top
        base = Quotient.of(Fraction(10)) if name == "log" else values[1]
        return self.multiply(top, self.inverse(self.natural_log(base)))

    def natural_log(self, q: Quotient) -> Quotient:
        """ln of a positive rational times powers of e and roots of primes, as a sum over primes."""
        if not q.num:
            raise Undefined("the logarithm of zero")
        mono = q.monomial
        if mono is None or mono[0] <= 0 or not all(g == "e" or g.startswith("p:") for g, _ in mono[1]):
            return Quotient.generator(f"f:ln:{q.key()}")
        coefficient, gens = mono
        total: Poly = {}
        for number, sign in ((coefficient.numerator, 1), (coefficient.denominator, -1)):
            primes, rest = factor(number)
            for prime, times in [*primes.items(), *([(rest, 1)] if rest > 1 else [])]:
                gen: Monomial = ((f"l:{prime}", Fraction(1)),)
                total = self.algebra.add(total, {gen: Fraction(sign * times)})
        for gen_name, exponent in gens:
            term: Monomial = () if gen_name == "e" else ((f"l:{gen_name[2:]}", Fraction(1)),)
            total = self.algebra.add(total, {term: exponent})
        return Quotient(total, ONE)


def prime_powers(node: Node, budget: Budget) -> dict[int, Fraction] | None:
    """A positive number built by products, quotients and powers as {prime: exponent}, however big it is; None
    for anything else. Unique factorisation makes two of them equal exactly when they agree."""
    budget.spend(2)
    match node:
        case Num(value) if value > 0:
            found: dict[int, Fraction] = {}
            for number, sign in ((value.numerator, 1), (value.denominator, -1)):
                primes, rest = factor(number)
                if rest != 1:
                    return None
                for prime, times in primes.items():
                    found[prime] = found.get(prime, Fraction(0)) + sign * times
            return {p: e for p, e in found.items() if e}
        case Mul(items):
            return _merged([(prime_powers(item, budget), Fraction(1)) for item in items])
        case Div(top, bottom):
            pair = (prime_powers(top, budget), Fraction(1)), (prime_powers(bottom, budget), Fraction(-1))
            return _merged(list(pair))
        case Pow(base, exp):
            exponent = Canon(budget).of(exp).rational
            return None if exponent is None else _merged([(prime_powers(base, budget), exponent)])
    return None


def _merged(parts: list[tuple[dict[int, Fraction] | None, Fraction]]) -> dict[int, Fraction] | None:
    total: dict[int, Fraction] = {}
    for powers, weight in parts:
        if powers is None:
            return None
        for prime, exponent in powers.items():
            total[prime] = total.get(prime, Fraction(0)) + exponent * weight
    return {prime: exponent for prime, exponent in total.items() if exponent}


def opaque_key(node: Node) -> str:
    """A name for an unevaluated operator: equal only when written alike."""
    return repr(node)
