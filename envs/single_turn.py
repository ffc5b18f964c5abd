"""One prompt, one answer: the environment of plain verifiable tasks."""

from __future__ import annotations

from collections.abc import Callable

from envs.base import TextEnv
from envs.tasks import TaskSource, load_tasks, render_prompt
from reasoner.errors import UsageError
from reasoner.types import Task

_DRAWS = 2**31 - 1  # positions in the training stream an episode without a given task is drawn from


class SingleTurnEnv(TextEnv):
    """The observation is the task's prompt in `template` (of chat messages, the last one's text: the messages
    themselves are for the model's chat template); the first action ends the episode.

    `draw` gives the task of position i for episodes that are reset without one."""

    def __init__(
        self,
        task: Task | None = None,
        *,
        draw: Callable[[int], Task] | None = None,
        template: str = "{prompt}",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode)
        if task is None and draw is None:
            raise UsageError("SingleTurnEnv needs a task or a function that draws one")
        self._own_task, self._draw, self._template = task, draw, template

    def begin(self, task: Task | None) -> tuple[Task, str]:
        task = task or self._own_task
        if task is None:
            assert self._draw is not None, "the constructor asks for a task or a draw"
            task = self._draw(int(self.np_random.integers(_DRAWS)))
        if not isinstance(task.prompt, str):
            return task, task.prompt[-1]["content"]
        return task, render_prompt(task.prompt, self._template)

    def respond(self, action: str) -> tuple[str, bool, bool, str | None]:
        return "", True, False, action


def arithmetic_env(tasks: str = "arithmetic", seed: int = 0, render_mode: str | None = None) -> SingleTurnEnv:
    """Entry point of `gymnasium.make("reasoner/Arithmetic-v0")`."""
    source: TaskSource = load_tasks(tasks, seed)
    return SingleTurnEnv(draw=source.train, template=source.base_template, render_mode=render_mode)
