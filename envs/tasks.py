"""Where tasks come from: the `TaskSource` protocol, JSONL files and `load_tasks`."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from reasoner.errors import UsageError
from reasoner.types import Task

if TYPE_CHECKING:
    from envs.base import TextEnv

SPLITS = ("held_out", "ood")
_KNOWN_SPECS = ("arithmetic",)
_FIELDS = ("prompt", "reference", "id", "family", "difficulty", "split", "metadata")


@runtime_checkable
class TaskSource(Protocol):
    """A training stream and evaluation splits of verifiable tasks.

    `base_template` and `chat_template` are format strings with `{prompt}`. `finite`: tasks come again, so
    the loop retires those that are solved."""

    @property
    def name(self) -> str: ...

    @property
    def finite(self) -> bool: ...

    @property
    def base_template(self) -> str: ...

    @property
    def chat_template(self) -> str: ...

    def train(self, index: int) -> Task:
        """Task at a position of the training stream: a pure function of the source and the position."""

    def split(self, name: str, n: int) -> list[Task]:
        """The first `n` tasks of "held_out" or "ood", fewer (or none) where there are no more."""

    def env(self, task: Task) -> TextEnv:
        """A new environment for one episode on `task`, with the prompt as the task has it."""


def render_prompt(prompt: str | tuple[Mapping[str, str], ...], template: str) -> str:
    """The prompt as text in a template with `{prompt}`. UsageError for chat messages and bad templates."""
    if not isinstance(prompt, str):
        raise UsageError(
            "a prompt of chat messages is rendered by the model's chat template, not by a text template"
        )
    try:
        rendered = template.format(prompt=prompt)
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(
            f"bad prompt template {template!r}: {error} (write {{prompt}}, and {{{{ for a brace)"
        ) from None
    if "{prompt" not in template:
        raise UsageError(f"the prompt template {template!r} does not contain {{prompt}}")
    return rendered


class SingleTurnTasks:
    """What sources of plain one-answer tasks share."""

    finite = False

    def env(self, task: Task) -> TextEnv:
        from envs.single_turn import SingleTurnEnv

        return SingleTurnEnv(task)


@dataclass(frozen=True)
class FileTasks(SingleTurnTasks):
    """Tasks from a JSONL file. Lines with `"split"` "held_out" or "ood" are evaluation tasks; the others are
    the training stream, each pass over them in an order of its own."""

    name: str
    training: tuple[Task, ...]
    splits: Mapping[str, tuple[Task, ...]]
    seed: int = 0
    finite: bool = True
    base_template: str = "{prompt}\n"
    chat_template: str = "{prompt} Give the final answer in \\boxed{{}}."

    def train(self, index: int) -> Task:
        import numpy as np

        if not self.training:
            raise UsageError(f'{self.name} has no training tasks: every line has a "split"')
        if index < 0:
            raise UsageError(f"a position in the training stream cannot be negative: {index}")
        epoch, position = divmod(index, len(self.training))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.training))
        return self.training[int(order[position])]

    def split(self, name: str, n: int) -> list[Task]:
        if name not in SPLITS:
            raise UsageError(f"{self.name} has no split {name!r}: choose held_out or ood")
        return list(self.splits.get(name, ())[:n])


def read_tasks(path: Path, seed: int = 0) -> FileTasks:
    """Tasks of a JSONL file: `prompt` and `reference`, optionally `id`, `family`, `difficulty`, `split`,
    `metadata`. UsageError naming file and line for every line that is not such a task."""
    groups: dict[str, list[Task]] = {"train": [], **{s: [] for s in SPLITS}}
    ids: dict[str, int] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read the tasks in {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            split, task = _task_of_line(json.loads(line.decode("utf-8")), f"{path.stem}/{number}")
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}:{number}: {error}") from None
        if task.id in ids:
            raise UsageError(f"{path}:{number}: the id {task.id!r} is already used on line {ids[task.id]}")
        ids[task.id] = number
        groups[split].append(task)
    if not ids:
        raise UsageError(f"{path} holds no tasks")
    return FileTasks(path.stem, tuple(groups.pop("train")), {s: tuple(t) for s, t in groups.items()}, seed)


def _task_of_line(fields: Any, default_id: str) -> tuple[str, Task]:
    """(split, task) of one decoded line; ValueError says what is wrong with it."""
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with prompt and reference, got {type(fields).__name__}")
    if unknown := [f for f in fields if f not in _FIELDS]:
        near = get_close_matches(unknown[0], _FIELDS, 1)
        raise ValueError(f"unknown field {unknown[0]!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    for required in ("prompt", "reference"):
        if required not in fields:
            raise ValueError(f"the field {required!r} is missing")
    split = fields.get("split", "train")
    if split not in ("train", *SPLITS):
        raise ValueError(f"unknown split {split!r}: choose train, held_out or ood")
    for name in ("id", "family"):
        if name in fields and not (isinstance(fields[name], str) and fields[name]):
            raise ValueError(f"{name} must be a text, got {fields[name]!r}")
    metadata = fields.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be an object, got {metadata!r}")
    return split, Task(
        fields.get("id", default_id),
        _prompt(fields["prompt"]),
        _reference(fields["reference"]),
        fields.get("family", "default"),
        _difficulty(fields.get("difficulty", 0.0)),
        metadata,
    )


def _difficulty(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError(f"difficulty must be a number, got {given!r}")
    return float(given)


def _prompt(given: Any) -> str | tuple[Mapping[str, str], ...]:
    if isinstance(given, str) and given.strip():
        return given
    if isinstance(given, list) and given:
        if all(
            isinstance(m, dict)
            and set(m) == {"role", "content"}
            and all(isinstance(v, str) for v in m.values())
            for m in given
        ):
            return tuple(given)
    raise ValueError(f"prompt must be a text or chat messages with role and content, got {given!r}")


def _reference(given: Any) -> str | tuple[str, ...]:
    several = given if isinstance(given, list) else [given]
    if not several or not all(
        isinstance(r, str | int | float) and not isinstance(r, bool) and str(r).strip() for r in several
    ):
        raise ValueError(f"reference must be a text, a number or a list of them, got {given!r}")
    return tuple(map(str, several)) if isinstance(given, list) else str(given)


def load_tasks(spec: str, seed: int = 0) -> TaskSource:
    """The task source named by `spec`: `arithmetic`, `arithmetic:levels=1-2,families=chain|product`,
    `path/to/tasks.jsonl`, or `module:attribute` (a TaskSource, or a factory called with `seed`).

    UsageError says what is wrong with any other spec and names the nearest known one."""
    head, _, options = spec.partition(":")
    if head == "arithmetic":
        return _arithmetic(options, seed)
    if spec.endswith(".jsonl") or Path(spec).is_file():
        return read_tasks(Path(spec), seed)
    if options and head.replace(".", "").replace("_", "").isalnum():
        return _imported(head, options, spec, seed)
    near = get_close_matches(head, _KNOWN_SPECS, 1, cutoff=0.5)
    raise UsageError(
        f"unknown tasks {spec!r}"
        + (f": did you mean {near[0]!r}?" if near else "")
        + " Known: arithmetic[:levels=1-2,families=chain|product], a .jsonl file, module:attribute."
    )


def _arithmetic(options: str, seed: int) -> TaskSource:
    from envs.arithmetic import ArithmeticTasks

    chosen: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name == "levels":
            chosen[name] = _levels(value)
        elif name == "families":
            chosen[name] = tuple(value.split("|"))
        else:
            raise UsageError(f"arithmetic has no option {name!r}: use levels=1-2 or families=chain|product")
    return ArithmeticTasks(seed, **chosen)


def _levels(value: str) -> tuple[int, ...]:
    """`2`, `1-3` or `1|3`."""
    if not re.fullmatch(r"\d+(-\d+|(\|\d+)*)", value):
        raise UsageError(f"cannot read levels={value!r}: write levels=2, levels=1-3 or levels=1|3")
    if "-" in value:
        first, last = map(int, value.split("-"))
        return tuple(range(first, last + 1))
    return tuple(map(int, value.split("|")))


def _imported(module: str, attribute: str, spec: str, seed: int) -> TaskSource:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        home = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # foreign code at import
        raise UsageError(f"cannot import the tasks {spec!r}: {type(error).__name__}: {error}") from error
    if not hasattr(home, attribute):
        raise UsageError(f"the module {module!r} has no attribute {attribute!r} (tasks {spec!r})")
    found = getattr(home, attribute)
    source = found(seed=seed) if callable(found) else found
    if not isinstance(source, TaskSource):
        raise UsageError(
            f"{spec!r} gave a {type(source).__name__}, not a TaskSource: it needs name, base_template, "
            "chat_template, train(index), split(name, n) and env(task)"
        )
    return source
