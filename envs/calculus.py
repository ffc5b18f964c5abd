"""Derivatives and antiderivatives, made and written by sympy.

An integral is made from its solution: a function is drawn and differentiated, so every integral has an
elementary answer; an answer is checked by differentiation (`verifiers.antiderivative`).
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

from envs.generated import Family, GeneratedTasks, Problem

#: A function before sympy is asked: polynomials as their coefficients from x^0 on, and what they are used in.
Plan = tuple


def _polynomial(rng: Random, degree: int) -> Plan:
    return (*(rng.randint(-9, 9) for _ in range(degree)), rng.choice((-1, 1)) * rng.randint(1, 9))


def _elementary(rng: Random, argument: Plan) -> Plan:
    return (rng.choice(("sin", "cos", "exp")), argument)


def plan(rng: Random, level: int) -> Plan:
    """Level 1: a polynomial; 2: plus sin, cos or exp of x; 3: of ax + b, times a power; 4: of a quadratic,
    times a polynomial; 5: times another of them."""
    if level == 1:
        return ("poly", _polynomial(rng, rng.randint(2, 4)))
    if level == 2:
        first, size = _polynomial(rng, rng.randint(1, 3)), rng.randint(1, 9)
        return ("sum", ("poly", first), ("product", ("poly", (size,)), _elementary(rng, (0, 1))))
    if level == 3:
        power = (*[0] * rng.randint(0, 2), rng.randint(1, 9))
        return ("product", ("poly", power), _elementary(rng, (rng.randint(0, 3), rng.randint(2, 5))))
    factors = [("poly", _polynomial(rng, rng.randint(1, 2))), _elementary(rng, _polynomial(rng, 2))]
    if level > 4:
        factors.append(_elementary(rng, (0, rng.randint(2, 5))))
    return ("product", *factors)


def build(planned: Plan) -> Any:
    """The sympy expression in x of a plan."""
    import sympy

    x = sympy.Symbol("x")
    kind, *parts = planned
    if kind in ("sum", "product"):
        return (sympy.Add if kind == "sum" else sympy.Mul)(*map(build, parts))
    polynomial = sum(c * x**i for i, c in enumerate(parts[0]))
    return polynomial if kind == "poly" else getattr(sympy, kind)(polynomial)


def draw_derivative(rng: Random, level: int) -> Problem:
    planned = plan(rng, level)
    return Problem("", "", f"differentiate:{planned}", write=partial(write_derivative, planned))


def write_derivative(planned: Plan) -> Problem:
    import sympy

    function = build(planned)
    derivative = sympy.diff(function, sympy.Symbol("x"))
    prompt = f"Differentiate $f(x) = {sympy.latex(function)}$ with respect to x."
    return Problem(prompt, sympy.latex(derivative), f"differentiate:{planned}")


def draw_integral(rng: Random, level: int) -> Problem:
    planned = plan(rng, level)
    return Problem("", "", f"integrate:{planned}", write=partial(write_integral, planned))


def write_integral(planned: Plan) -> Problem:
    import sympy

    function = build(planned)
    integrand = sympy.latex(sympy.expand(sympy.diff(function, sympy.Symbol("x"))))
    prompt = f"Find an antiderivative of $f(x) = {integrand}$ with respect to x."
    metadata = {"integrand": integrand, "variable": "x"}
    return Problem(prompt, sympy.latex(function), f"integrate:{planned}", metadata)


class CalculusTasks(GeneratedTasks):
    name = "calculus"
    FAMILIES = {
        "differentiate": Family(draw_derivative, (1, 2, 3, 4), (5,)),
        "integrate": Family(draw_integral, (1, 2, 3), (4,), verifier="antiderivative"),
    }
