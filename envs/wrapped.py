"""Task sources made of others: the same tasks in another environment, and an environment's own tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from envs.base import TextEnv
from envs.specs import Spec, UnknownOption, nearest, split_outside, value
from envs.tasks import SPLITS, TaskSource, load_tasks, source_of, splits_of
from reasoner.errors import ReasonerError, UsageError
from reasoner.types import Task
from verifiers.base import describe_exception

HELD_OUT_ONE_IN = 8
_DRAWS_A_TASK = 10 * HELD_OUT_ONE_IN


@dataclass(frozen=True)
class WrappedTasks:
    """The tasks of `source`, each in the environment that `make` gives for it. `system`: what a chat model is
    told first when a task has chat messages of its own (in other tasks the environment tells it)."""

    source: TaskSource
    wrapper: str
    make: Callable[[Task], TextEnv]
    system: str = ""

    @property
    def name(self) -> str:
        return f"{self.wrapper}({self.source.name})"

    @property
    def finite(self) -> bool:
        return self.source.finite

    @property
    def base_template(self) -> str:
        return self.source.base_template

    @property
    def chat_template(self) -> str:
        return self.source.chat_template

    @property
    def licence(self) -> str:
        return getattr(self.source, "licence", "yours")

    @property
    def eval_splits(self) -> tuple[str, ...]:
        return splits_of(self.source)

    def member(self, task: Task) -> TaskSource:
        """The source whose templates a task has."""
        return source_of(self.source, task)

    def train(self, index: int) -> Task:
        return self._told(self.source.train(index))

    def split(self, name: str, n: int) -> list[Task]:
        return [self._told(task) for task in self.source.split(name, n)]

    def env(self, task: Task) -> TextEnv:
        return self.make(task)

    def _told(self, task: Task) -> Task:
        if isinstance(task.prompt, str) or not self.system:
            return task
        return replace(task, prompt=({"role": "system", "content": self.system}, *task.prompt))


def wrapped_spec(spec: Spec, defaults: Mapping[str, int], seed: int) -> tuple[TaskSource, dict[str, int]]:
    """The tasks inside `NAME(TASKS, option=3)` and NAME's own options, whole numbers from 1 on."""
    body = spec.text[len(spec.head) + 1 : -1] if spec.text.endswith(")") else ""
    own, inner = dict(defaults), []
    for piece in filter(None, split_outside(body)):
        name, equals, given = piece.partition("=")
        if not equals or name.strip() not in defaults:
            inner.append(piece)
            continue
        number = value(given.strip())
        if not isinstance(number, int) or number < 1:
            raise UsageError(
                f"{spec.head}: {name.strip()} must be a whole number from 1 on, got {given.strip()!r}"
            )
        own[name.strip()] = number
    if not inner or "=" in inner[0].partition(":")[0]:
        wrong = f": {inner[0]!r} is no option{nearest(inner[0], defaults)}" if inner else ""
        raise UsageError(
            f"{spec.head} needs the tasks it is for{wrong}. Write {spec.head}(arithmetic:levels=2, "
            f"{', '.join(f'{n}={v}' for n, v in defaults.items())})"
        )
    try:
        return load_tasks(",".join(inner), seed), own
    except UnknownOption as error:
        raise UnknownOption(f"{error}; {spec.head} itself has {', '.join(defaults)}") from None


@dataclass(frozen=True)
class EnvironmentTasks:
    """The tasks that an environment draws itself: position i is what `reset` gives with a seed made of
    (seed, i). Tasks in a bucket of a stable hash of prompt and reference are held out."""

    make: Callable[[], TextEnv]
    name: str
    seed: int = 0
    finite: bool = False
    base_template: str = "{prompt}\n"
    chat_template: str = "{prompt}"

    def env(self, task: Task) -> TextEnv:
        return self.make()

    def train(self, index: int) -> Task:
        if index < 0:
            raise UsageError(f"a position in the training stream cannot be negative: {index}")
        for redraw in range(
            _DRAWS_A_TASK
        ):  # an environment with few tasks may have none that is not held out
            task = self._draw(f"train/{self.seed}/{index}", redraw)
            if not _held_out(task):
                break
        return task

    def split(self, name: str, n: int) -> list[Task]:
        if name not in SPLITS:
            raise UsageError(f"{self.name} has no split {name!r}: choose held_out or ood")
        found: dict[Any, Task] = {}
        for index in range(_DRAWS_A_TASK * n if name == "held_out" else 0):
            task = self._draw(f"held_out/{index}", 0)
            if _held_out(task):
                found.setdefault((task.prompt, task.reference), task)
            if len(found) == n:
                break
        return list(found.values())

    def _draw(self, position: str, redraw: int) -> Task:
        try:
            env = self.make()
            env.reset(seed=_hash(f"{position}/{redraw}") % 2**31)
            task = env.task
            assert task is not None, "reset sets its task"
            env.close()
        except ReasonerError:
            raise
        except Exception as error:  # foreign code
            raise UsageError(
                f"the environment {self.name} failed to begin {position}: {describe_exception(error)}"
            ) from error
        return replace(task, id=f"{self.name}/{position}")


def _held_out(task: Task) -> bool:
    return _hash(f"{task.prompt}|{task.references}") % HELD_OUT_ONE_IN == 0


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8, person=b"reasoner-env").digest(), "big")
