"""Any tasks as one environment: `gymnasium.make("reasoner/Tasks-v0", tasks="self_correct(linear)")`."""

from __future__ import annotations

from envs.base import TextEnv
from envs.single_turn import DRAWS
from envs.tasks import load_tasks, render_prompt, source_of
from reasoner.types import Task


class TasksEnv(TextEnv):
    """Each episode is one of the environment that the source has for its task, drawn from the training
    stream where `reset` is not given one. The first observation is the prompt as a base model sees it."""

    def __init__(self, tasks: str = "arithmetic", seed: int = 0, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self._source = load_tasks(tasks, seed)
        self._env: TextEnv | None = None

    def begin(self, task: Task | None) -> tuple[Task, str]:
        task = task or self._source.train(int(self.np_random.integers(DRAWS)))
        self.close()
        self._env = self._source.env(task)
        seed, options = int(self.np_random.integers(DRAWS)), {"task": task, "verify": self.verify}
        observation, _ = self._env.reset(seed=seed, options=options)
        return task, render_prompt(observation, source_of(self._source, task).base_template)

    def respond(self, action: str) -> tuple[str, bool, bool, str | None]:
        assert self._env is not None, "begin came first"
        return self._env.respond(action)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None
