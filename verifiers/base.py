"""What a verifier is, and how anything callable becomes one.

A verifier decides; the runner (`verifiers.pool`) owns safety: deadlines, memory, killing, respawning. So
nothing here catches time or memory, and a plug-in may be written as if nothing could go wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reasoner.errors import UsageError
from reasoner.plugins import import_file, import_module
from reasoner.types import Task, Verdict

#: What a plug-in may return for one completion.
Outcome = bool | float | Verdict | None
EXPECTED = "expected 'module:attribute' or 'path/to/file.py:attribute'"
ENTRY_POINT_GROUP = "reasoner.verifiers"
#: Our own verifiers by name.
BUILT_IN = {
    "math": "verifiers.math:MathVerifier",
    "auto": "verifiers.by_task:ByTask",
    "countdown": "verifiers.countdown:CountdownVerifier",
    "antiderivative": "verifiers.antiderivative:AntiderivativeVerifier",
    "reasoning_gym": "verifiers.reasoning_gym:ReasoningGymVerifier",
}


class Verifier:
    """Base class of verifiers. Override `verify`, or `verify_group` when a reward looks at a whole group.

    Class attributes are the declarations a verifier makes to its runner.
    """

    name: str = "verifier"
    correct_from: float = 1.0  # a float reward counts as correct from here on
    timeout_s: float = 10.0  # wall-clock deadline of one item (of one call, when `batched`)
    memory_mib: int = 2048  # address space one item may add to what loading the verifier took
    batched: bool = False  # True: one call a group, a list in and a list out
    in_process: bool = False  # True: runs in a thread of the caller, which cannot be killed
    timeout_is_answer: bool = False  # True: a kill after busy computing is the answer's fault, reward 0

    def verify(self, completion: str, task: Task) -> Verdict:
        """The verdict on one completion."""
        raise NotImplementedError(f"{type(self).__name__} defines neither verify nor verify_group")

    def verify_group(self, completions: Sequence[str], task: Task) -> list[Verdict]:
        """Verdicts on the completions of one task, in order."""
        return [self.verify(completion, task) for completion in completions]

    def answer_key(self, completion: str, task: Task) -> str | None:
        """A name for the class of answers equal to this one, for majority votes; None: no answer to vote
        with. Equal keys are an equivalence relation, so classes are transitive."""
        return None

    def candidates(self, completion: str) -> list[str]:
        """Every answer the completion states, in order of appearance."""
        return []


def to_verdict(outcome: Any, correct_from: float = 1.0) -> Verdict:
    """The `Verdict` for what a plug-in returned; nonsense becomes `error`, never reward 0."""
    if outcome is None:
        return Verdict("masked", None, None, "the verifier returned None")
    if isinstance(outcome, Verdict):
        scored = outcome if outcome.reward is None else to_verdict(outcome.reward)
        return scored if scored.reward is None else replace(outcome, reward=scored.reward)
    if hasattr(outcome, "item") and getattr(outcome, "shape", None) in ((), (1,)):
        outcome = outcome.item()  # a numpy or torch scalar
    if isinstance(outcome, (bool, int, float)):
        reward = float(outcome)
        if not math.isfinite(reward):
            return Verdict.error(f"the verifier returned {outcome!r}, not a finite reward")
        make = Verdict.correct if reward >= correct_from else Verdict.wrong
        return make(reward=reward)
    shown = repr(outcome)[:80]
    return Verdict.error(f"the verifier returned {shown}: expected bool, float, Verdict or None")


def one_each(outcomes: Any, expected: int, correct_from: float = 1.0) -> list[Verdict]:
    """The verdicts of a whole group, or as many errors when there is not one outcome for each completion."""
    if not hasattr(outcomes, "__len__") or isinstance(outcomes, (str, bytes)) or len(outcomes) != expected:
        shown = repr(outcomes)[:80]
        return [Verdict.error(f"expected {expected} outcomes, the verifier returned {shown}")] * expected
    return [to_verdict(outcome, correct_from) for outcome in outcomes]


def describe_exception(error: BaseException) -> str:
    """One line: the type, the message, and the last place of the traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{where}"


class CallableVerifier(Verifier):
    """Any callable `(completion, task) -> bool | float | Verdict | None`, sync or async.

    With the attribute `batched = True` it is called `(completions, task)` and returns one outcome each. The
    other declarations of `Verifier` are read from the callable as well.
    """

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        self._function = function
        self.name = name or getattr(function, "__qualname__", type(function).__name__)
        for declared in (
            "correct_from",
            "timeout_s",
            "memory_mib",
            "batched",
            "in_process",
            "timeout_is_answer",
        ):
            if hasattr(function, declared):
                setattr(self, declared, getattr(function, declared))
        self.is_async = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
        if hasattr(function, "answer_key"):
            self.answer_key = function.answer_key  # type: ignore[method-assign]
        if hasattr(function, "candidates"):
            self.candidates = function.candidates  # type: ignore[method-assign]

    def verify(self, completion: str, task: Task) -> Verdict:
        if self.batched:
            return self.verify_group([completion], task)[0]
        outcome = self._function(completion, task)
        if inspect.isawaitable(outcome):
            outcome = asyncio.run(_wait(outcome))
        return to_verdict(outcome, self.correct_from)

    def verify_group(self, completions: Sequence[str], task: Task) -> list[Verdict]:
        if self.batched:
            outcomes = self._function(list(completions), task)
            if inspect.isawaitable(outcomes):
                outcomes = asyncio.run(_wait(outcomes))
            return one_each(outcomes, len(completions), self.correct_from)
        if self.is_async:
            return asyncio.run(self._gather(completions, task))
        return super().verify_group(completions, task)

    async def _gather(self, completions: Sequence[str], task: Task) -> list[Verdict]:
        async def one(completion: str) -> Verdict:
            try:
                call = self._function(completion, task)
                return to_verdict(await asyncio.wait_for(call, self.timeout_s), self.correct_from)
            except TimeoutError:
                return Verdict.error(f"the verifier did not answer within {self.timeout_s:g} s")
            except Exception as error:  # a plug-in is a boundary: its failure is one verdict
                return Verdict.error(describe_exception(error))

        return list(await asyncio.gather(*(one(completion) for completion in completions)))


async def _wait(outcome: Awaitable[Any]) -> Any:
    return await outcome


def load_verifier(spec: str | Callable[..., Any] | Verifier) -> Verifier:
    """The verifier that `spec` names: one of `BUILT_IN` ("math" …), the name of an entry point in the group
    `reasoner.verifiers`, `module:attribute`, `path/to/file.py:attribute`, the URL of an endpoint
    (`verifiers.http`), or a function, class or instance.

    Raises `UsageError` with what is wrong when it cannot be imported or is not callable.
    """
    if isinstance(spec, str):
        name, found = spec, _find(spec)
    else:
        name, found = "", spec
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:  # foreign code
            raise UsageError(
                f"verifier class {found.__name__!r} must be constructible without arguments: "
                f"{describe_exception(error)}"
            ) from error
    if isinstance(found, Verifier) and not inspect.iscoroutinefunction(found.verify):
        return _checked(found)
    if not callable(found) and callable(getattr(found, "verify", None)):
        name, found = name or type(found).__name__, _as_function(found)
    if not callable(found):
        raise UsageError(
            f"verifier {spec!r} is a {type(found).__name__}: expected a function, class or Verifier"
        )
    return _checked(CallableVerifier(found, name))


def _as_function(instance: Any) -> Callable[..., Any]:
    """An object whose `verify` is not that of a `Verifier`, as a callable with its declarations."""

    class Duck:
        def __call__(self, completion: str, task: Task) -> Any:
            return instance.verify(completion, task)

        def __getattr__(self, attribute: str) -> Any:
            return getattr(instance, attribute)

    class AsyncDuck(Duck):
        async def __call__(self, completion: str, task: Task) -> Any:
            return await instance.verify(completion, task)

    return AsyncDuck() if inspect.iscoroutinefunction(instance.verify) else Duck()


def _checked(verifier: Verifier) -> Verifier:
    if not isinstance(verifier.timeout_s, (int, float)) or not 0 < verifier.timeout_s < 1e6:
        raise UsageError(
            f"verifier {verifier.name!r}: timeout_s must be positive seconds, got {verifier.timeout_s!r}"
        )
    if not isinstance(verifier.memory_mib, int) or verifier.memory_mib < 16:
        raise UsageError(
            f"verifier {verifier.name!r}: memory_mib must be an int >= 16, got {verifier.memory_mib!r}"
        )
    if not isinstance(verifier.correct_from, (int, float)):
        raise UsageError(
            f"verifier {verifier.name!r}: correct_from must be a number, got {verifier.correct_from!r}"
        )
    return verifier


def _find(spec: str) -> Any:
    spec = BUILT_IN.get(spec, spec)
    if spec.startswith(("http://", "https://")):
        from verifiers.http import HttpVerifier

        return HttpVerifier(spec)
    if spec.endswith(".py"):
        raise UsageError(f"verifier {spec!r}: which function or class of that file? {spec}:NAME")
    if ":" not in spec:
        return _entry_point(spec)
    home, _, attribute = spec.rpartition(":")
    if not home or not attribute:
        raise UsageError(f"verifier {spec!r}: {EXPECTED}")
    found: Any = _import(spec, home)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"verifier {spec!r}: {home!r} has no attribute {attribute!r}")
        found = getattr(found, part)
    return found


def _entry_point(name: str) -> Any:
    from importlib.metadata import entry_points

    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        known = ", ".join([*BUILT_IN, *sorted(points)])
        raise UsageError(f"unknown verifier {name!r}: neither one of {known}, nor a URL; {EXPECTED}")
    try:
        return points[name].load()
    except Exception as error:  # foreign code at import
        raise UsageError(f"verifier {name!r} failed to load: {describe_exception(error)}") from error


def _import(spec: str, home: str) -> Any:
    try:
        return import_file(Path(home)) if home.endswith(".py") else import_module(home)
    except UsageError as error:
        raise UsageError(f"verifier {spec!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # foreign code at import
        raise UsageError(f"verifier {spec!r} cannot be imported: {describe_exception(error)}") from error
