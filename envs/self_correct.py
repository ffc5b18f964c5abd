"""Try again: the verdict on an answer comes back as an observation; the last of up to `tries` answers counts.

What comes back is right or wrong, never the answer. As tasks: `self_correct(arithmetic:levels=2,tries=3)`.
"""

from __future__ import annotations

from envs.base import TextEnv
from envs.specs import Spec
from envs.tasks import TaskSource
from envs.wrapped import WrappedTasks, wrapped_spec
from reasoner.errors import UsageError
from reasoner.types import UNSCORED, Task

RETRY = "\nThat is not right. Try again.\n"


class SelfCorrectEnv(TextEnv):
    """Ends with the first right answer, the last try, or a verdict that says nothing about the answer."""

    blocking = True  # waits for the verifier

    def __init__(
        self, task: Task | None = None, tries: int = 2, retry: str = RETRY, render_mode: str | None = None
    ) -> None:
        super().__init__(render_mode)
        if tries < 1:
            raise UsageError(f"self_correct needs at least 1 try, got {tries}")
        self._own_task, self._tries, self._retry = task, tries, retry
        self._used = 0

    def begin(self, task: Task | None) -> tuple[Task, str]:
        task = task or self._own_task
        if task is None:
            raise UsageError("self_correct needs a task")
        self._used = 0
        return task, task.prompt if isinstance(task.prompt, str) else task.prompt[-1]["content"]

    def respond(self, action: str) -> tuple[str, bool, bool, str | None]:
        assert self.task is not None, "begin came first"
        self._used += 1
        if self._used >= self._tries:
            return "", True, False, action
        verdict = self.verify(action, self.task)
        if verdict.is_correct or verdict.status in UNSCORED:
            return "", True, False, action
        return self._retry, False, False, None


def from_spec(spec: Spec, seed: int) -> TaskSource:
    """The source of `self_correct(TASKS, tries=2)`."""
    source, options = wrapped_spec(spec, {"tries": 2}, seed)
    return WrappedTasks(source, "self_correct", lambda task: SelfCorrectEnv(task, options["tries"]))
