"""`TextEnv`: an episode over text as a `gymnasium.Env`, and the text space it needs.

Observations are deltas: each one is appended to the tokens of the episode, nothing is ever rendered again
(chat templates are not prefix-stable). The last turn returns reward 0.0 and what there is to grade in
`info["completion"]`; grading happens in the verifier pool, a whole group at once.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_shared_memory, read_from_shared_memory, write_to_shared_memory

from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers.base import load_verifier

_SAMPLE_CHARSET = "".join(chr(c) for c in range(32, 127)) + "\n"


class TextSpace(spaces.Text):
    """Every text of at most `max_length` characters: any Unicode, blanks and the empty string included.

    Gymnasium's `Text` takes only the characters of its charset; here the charset is only what `sample` uses.
    """

    def __init__(self, max_length: int = 1 << 16, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=_SAMPLE_CHARSET, seed=seed)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: None = None, probability: None = None) -> str:
        """A random text of at most 32 characters."""
        if mask is not None or probability is not None:
            raise UsageError("TextSpace.sample takes neither a mask nor probabilities")
        length = int(self.np_random.integers(0, min(32, self.max_length) + 1))
        return "".join(self.np_random.choice(list(_SAMPLE_CHARSET), size=length))

    def __repr__(self) -> str:
        return f"TextSpace(max_length={self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace) and self.max_length == other.max_length

    __hash__ = None  # type: ignore[assignment]


#: What environments copy: gymnasium prepares a charset for every new space, an episode's dearest part.
_TEXTS = TextSpace()


class _LiveTexts:
    """The observations in shared memory, read when they are looked at: `AsyncVectorEnv` fetches this object
    once and hands out deep copies, which are plain tuples of texts."""

    def __init__(self, cells: np.ndarray) -> None:
        self._cells = cells  # (n, 1 + max_length) int32: the length, then code points

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = self._cells[index]
        return "".join(map(chr, row[1 : row[0] + 1]))

    def __deepcopy__(self, memo: dict) -> tuple[str, ...]:
        return tuple(self[i] for i in range(len(self)))


# Gymnasium's own handlers for Text lose every character outside the charset, pad with blanks, and read the
# shared memory only once, before the first reset.


@create_shared_memory.register(TextSpace)
def _create_text_memory(space: TextSpace, n: int = 1, ctx: Any = multiprocessing) -> Any:
    return ctx.Array("i", n * (space.max_length + 1))


@write_to_shared_memory.register(TextSpace)
def _write_text(space: TextSpace, index: int, value: str, shared_memory: Any) -> None:
    if len(value) > space.max_length:
        raise ValueError(f"an observation of {len(value)} characters does not fit into {space!r}")
    cells = np.frombuffer(shared_memory.get_obj(), dtype=np.int32).reshape(-1, space.max_length + 1)[index]
    cells[0] = len(value)
    cells[1 : len(value) + 1] = [ord(c) for c in value]


@read_from_shared_memory.register(TextSpace)
def _read_text(space: TextSpace, shared_memory: Any, n: int = 1) -> _LiveTexts:
    return _LiveTexts(np.frombuffer(shared_memory.get_obj(), dtype=np.int32).reshape(n, space.max_length + 1))


class TextEnv(gymnasium.Env[str, str]):
    """One episode: `reset` gives the first observation, every `step` takes what the policy wrote.

    Subclasses implement `begin` and `respond`. `info` always has `task_id`; the last `info` of an episode has
    `completion`, the text to grade. Rewards are 0.0: the verifier fills them in elsewhere.

    `blocking`: a step may wait for something, so the worker runs it in a thread. `stop`: texts that end an
    action (beside the policy's own end). `verify(completion, task)` gives a verdict to an environment that
    shows it to the policy: the worker's verifier, or here the one that the task names. `on_error`: what
    `begin`, `respond` or `close` raises ends the run, saved ("stop"), or leaves its rollout out ("mask").
    """

    metadata = {"render_modes": ["ansi"]}
    blocking: ClassVar[bool] = False
    stop: ClassVar[tuple[str, ...]] = ()
    on_error: ClassVar[Literal["stop", "mask"]] = "stop"

    def __init__(self, render_mode: str | None = None) -> None:
        if self.on_error not in ("stop", "mask"):
            raise UsageError(f'{type(self).__name__}.on_error is "stop" or "mask", not {self.on_error!r}')
        self.observation_space = copy.copy(_TEXTS)
        self.action_space = copy.copy(_TEXTS)
        self.render_mode = render_mode
        self.task: Task | None = None
        self.transcript = ""
        self._done = True
        self._verify: Callable[[str, Task], Verdict] | None = None

    def begin(self, task: Task | None) -> tuple[Task, str]:
        """The task of the new episode (given, or one of the environment's own choice) and its first text."""
        raise NotImplementedError

    def respond(self, action: str) -> tuple[str, bool, bool, str | None]:
        """(text to append, terminated, truncated, text to grade). The last counts on the last turn only;
        None there means the action itself."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict]:
        """Start an episode on `options["task"]`, or on a task drawn with the environment's generator.
        `options["verify"]` takes the place of the verifier."""
        super().reset(seed=seed)
        given = options or {}
        task = given.get("task")
        if task is not None and not isinstance(task, Task):
            raise UsageError(f'options["task"] must be a Task, got {type(task).__name__}')
        self._verify = given.get("verify")
        begun = self.begin(task)
        if not isinstance(begun, tuple) or len(begun) != 2 or not isinstance(begun[0], Task):
            raise UsageError(f"{type(self).__name__}.begin must return (Task, text), got {begun!r:.80}")
        self.task, observation = begun
        self._check_text(observation, "begin")
        self.transcript, self._done = observation, False
        return observation, {"task_id": self.task.id}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """Take one action; the observation is what to append to the episode's text."""
        if not isinstance(action, str):
            raise UsageError(f"an action of a TextEnv is a str, got {type(action).__name__}")
        if self._done or self.task is None:
            raise UsageError("the episode is over (or never began): call reset() before step()")
        answered = self.respond(action)
        if not isinstance(answered, tuple) or len(answered) != 4:
            raise UsageError(
                f"{type(self).__name__}.respond must return (text, terminated, truncated, text or None), "
                f"got {answered!r:.80}"
            )
        observation, terminated, truncated, completion = answered
        self._check_text(observation, "respond")
        self.transcript += action + observation
        self._done = terminated or truncated
        info: dict[str, Any] = {"task_id": self.task.id}
        if self._done:
            info["completion"] = action if completion is None else completion
        return observation, 0.0, terminated, truncated, info

    def verify(self, completion: str, task: Task) -> Verdict:
        """The verdict on a completion, for environments that show it to the policy."""
        if self._verify is None:
            self._verify = load_verifier("auto").verify
        return self._verify(completion, task)

    def _check_text(self, observation: Any, method: str) -> None:
        if not isinstance(observation, str):
            raise UsageError(
                f"{type(self).__name__}.{method} gave an observation of type {type(observation).__name__}: "
                "a text environment gives str"
            )

    def render(self) -> str | None:
        return self.transcript if self.render_mode == "ansi" else None
