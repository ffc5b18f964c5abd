"""Antiderivatives: the derivative of the answer must be the integrand, whatever the constant."""

from __future__ import annotations

from dataclasses import replace

from reasoner.types import Task, Verdict
from verifiers.base import Verifier
from verifiers.extract import extract
from verifiers.math import MathVerifier, read
from verifiers.nodes import Call, Mul, Rel, Sym
from verifiers.symbolic import MAX_CALLS, Unknown, to_sympy, within_calls


class AntiderivativeVerifier(Verifier):
    """`metadata["integrand"]` is compared with the answer's derivative by `variable`, by the math verifier's
    rules. Differentiation has a budget of calls: an answer beyond it is a `timeout` on any machine."""

    name = "antiderivative"
    timeout_s = 10.0
    timeout_is_answer = True

    def __init__(self) -> None:
        self._math = MathVerifier()

    def verify(self, completion: str, task: Task) -> Verdict:
        integrand = task.metadata.get("integrand")
        if not isinstance(integrand, str) or read(integrand).tree is None:
            return Verdict("bad_reference", None, None, f"the integrand {integrand!r} cannot be read")
        answer = extract(completion).answer
        if answer is None:
            return Verdict.unparsed("no final answer")
        tree = read(answer).tree
        if tree is None:
            return Verdict("unparsed", 0.0, answer, "the answer cannot be read")
        if isinstance(tree, Rel) and set(tree.ops) == {"="} and isinstance(tree.items[0], (Sym, Call, Mul)):
            tree = tree.items[-1]  # F(x) = …
        variable = str(task.metadata.get("variable", "x"))
        try:
            derivative = within_calls(lambda: _derivative(to_sympy(tree), variable), MAX_CALLS)
        except Unknown as error:
            return Verdict.wrong(answer, f"not an antiderivative but a {error}")
        if derivative is None:
            return Verdict.timeout("too expensive to differentiate", answer)
        compared = self._math.verify(f"\\boxed{{{derivative}}}", replace(task, reference=integrand))
        if compared.status == "unparsed":
            return Verdict.wrong(answer, f"its derivative is {derivative}")
        return replace(
            compared, extracted=answer, detail=f"its derivative is {derivative}: {compared.detail}"
        )

    def answer_key(self, completion: str, task: Task) -> str | None:
        return self._math.answer_key(completion, task)


def _derivative(expression: object, variable: str) -> str:
    """The derivative as LaTeX. log|u| is differentiated as log u: both have the derivative u'/u."""
    import sympy

    plain = expression.replace(  # type: ignore[attr-defined]
        lambda e: isinstance(e, sympy.log) and isinstance(e.args[0], sympy.Abs),
        lambda e: sympy.log(e.args[0].args[0]),
    )
    return sympy.latex(sympy.diff(plain, sympy.Symbol(variable)))
