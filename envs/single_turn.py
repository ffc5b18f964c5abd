"""One prompt, one answer: the environment of plain verifiable tasks."""

from __future__ import annotations

from collections.abc import Callable

from envs.base import TextEnv
from reasoner.errors import UsageError
from reasoner.types import Task

DRAWS = 2**31 - 1  # positions in the training stream an episode without a given task is drawn from


class SingleTurnEnv(TextEnv):
    """The observation is the task's prompt (of chat messages, the last one's text: the messages themselves
    are for the model's chat template); the first action ends the episode.

    `draw` gives the task of position i for episodes that are reset without one."""

    def __init__(
        self,
        task: Task | None = None,
        *,
        draw: Callable[[int], Task] | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode)
        if task is None and draw is None:
            raise UsageError("SingleTurnEnv needs a task or a function that draws one")
        self._own_task, self._draw = task, draw

    def begin(self, task: Task | None) -> tuple[Task, str]:
        task = task or self._own_task
        if task is None:
            assert self._draw is not None, "the constructor asks for a task or a draw"
            task = self._draw(int(self.np_random.integers(DRAWS)))
        return task, task.prompt if isinstance(task.prompt, str) else task.prompt[-1]["content"]

    def respond(self, action: str) -> tuple[str, bool, bool, str | None]:
        return "", True, False, action
