"""Tools in the middle of an answer: `<calc>12*(3+4)</calc>` stops the policy, and the result is appended.

As tasks: `tool_use(arithmetic:levels=4,calls=3)`. The reward is the verdict on what is written after the last
result; a call earns nothing.
"""

from __future__ import annotations

import re

from envs import tools
from envs.base import TextEnv
from envs.specs import Spec
from envs.tasks import TaskSource
from envs.wrapped import WrappedTasks, wrapped_spec
from reasoner.errors import UsageError
from reasoner.types import Task

INSTRUCTIONS = (
    "You may use tools: <calc>12*(3+4)</calc> works out an expression of numbers, "
    "<sympy>factor(x^2 - 1)</sympy> calls sympy (simplify, expand, factor, diff, integrate, solve). "
    "The result follows in <result></result>."
)
NO_CALLS_LEFT = "error: no calls left, give the final answer"
_CALL = re.compile(r"<(calc|sympy)>((?:(?!<(?:calc|sympy)>).)*?)</\1>\s*\Z", re.DOTALL)


class ToolUseEnv(TextEnv):
    """A turn that ends with a call is answered by its result; any other turn is the answer and the end.
    After `calls` results a call is answered by an error, and the turn after that is the last."""

    blocking = True  # sympy runs in another process
    stop = ("</calc>", "</sympy>")

    def __init__(self, task: Task | None = None, calls: int = 4, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        if calls < 1:
            raise UsageError(f"tool_use needs at least 1 call, got {calls}")
        self._own_task, self._calls = task, calls
        self._used = 0

    def begin(self, task: Task | None) -> tuple[Task, str]:
        task = task or self._own_task
        if task is None:
            raise UsageError("tool_use needs a task")
        self._used = 0
        if not isinstance(task.prompt, str):
            return task, task.prompt[-1]["content"]
        return task, f"{INSTRUCTIONS}\n{task.prompt}"

    def respond(self, action: str) -> tuple[str, bool, bool, str | None]:
        call = _CALL.search(action)
        if call is None:
            return "", True, False, action
        self._used += 1
        if self._used > self._calls + 1:
            return "", False, True, action
        said = tools.use(call[1], call[2]) if self._used <= self._calls else NO_CALLS_LEFT
        return f"<result>{said}</result>\n", False, False, None


def from_spec(spec: Spec, seed: int) -> TaskSource:
    """The source of `tool_use(TASKS, calls=4)`."""
    source, options = wrapped_spec(spec, {"calls": 4}, seed)
    return WrappedTasks(source, "tool_use", lambda task: ToolUseEnv(task, options["calls"]), INSTRUCTIONS)
