"""Where tasks come from: the `TaskSource` protocol, JSONL files and `load_tasks`."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium

from envs.base import TextEnv
from envs.specs import members, nearest, read_spec
from reasoner.errors import UsageError
from reasoner.plugins import import_file, import_module
from reasoner.types import Task
from verifiers.base import BUILT_IN

SPLITS = ("held_out", "ood")
#: What stands before the options of a spec → the function `(spec, seed)` that makes the source.
SOURCES = {
    "arithmetic": "envs.arithmetic:from_spec",
    "countdown": "envs.countdown:CountdownTasks.from_spec",
    "linear": "envs.equations:LinearTasks.from_spec",
    "systems": "envs.equations:SystemTasks.from_spec",
    "calculus": "envs.calculus:CalculusTasks.from_spec",
    "number_theory": "envs.number_theory:NumberTheoryTasks.from_spec",
    "self_correct": "envs.self_correct:from_spec",
    "tool_use": "envs.tool_use:from_spec",
    "hf": "envs.hub:from_spec",
    "rg": "envs.reasoning_gym:from_spec",
}
#: Standard sets for evaluation, by name or as NAME:FILE (`envs.benchmarks`).
BENCHMARKS = ("gsm8k", "math500", "aime24", "aime25", "amc23")
_FIELDS = ("prompt", "reference", "id", "family", "difficulty", "split", "metadata")
#: How others call the two that a task must have.
USUAL = {
    "prompt": ("question", "problem", "query", "input"),
    "reference": ("answer", "solution", "final_answer", "ground_truth", "target", "output"),
}


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


def splits_of(source: TaskSource) -> tuple[str, ...]:
    """The names of a source's evaluation splits: its `eval_splits`, else held_out and ood."""
    return tuple(getattr(source, "eval_splits", SPLITS))


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


def source_of(source: TaskSource, task: Task) -> TaskSource:
    """Where a task comes from: the member of a mixture, else the source itself."""
    member = getattr(source, "member", None)
    return source if member is None else source_of(member(task), task)


def verifiers_of(source: Any) -> set[str]:
    """The verifiers that the tasks of a source are known to name: they can be loaded ahead."""
    inside = getattr(source, "sources", None) or [getattr(source, "source", None)]
    named = str(getattr(source, "verifier", None) or "math").split(", ")
    return {*named, *(name for part in inside if part is not None for name in verifiers_of(part))}


def prompt_text(prompt: str | tuple[Mapping[str, str], ...]) -> str:
    """A prompt as people read it: a text as it is, chat messages behind the names of their roles."""
    if isinstance(prompt, str):
        return prompt
    return "  ".join(f"{message['role']}: {message['content']}" for message in prompt)


def chat_messages(task: Task, observation: str, source: TaskSource) -> list[dict[str, str]]:
    """The first observation of a task as chat messages: the task's own, or its text in the chat template."""
    if not isinstance(task.prompt, str):
        return [dict(message) for message in task.prompt]
    return [{"role": "user", "content": render_prompt(observation, source.chat_template)}]


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
    """Tasks of a JSONL or Parquet file: `prompt` and `reference`, optionally `id`, `family`, `difficulty`,
    `split`, `metadata`. UsageError naming file and line for every line that is not such a task."""
    groups: dict[str, list[Task]] = {"train": [], **{s: [] for s in SPLITS}}
    ids: dict[str, int] = {}
    for number, fields in read_rows(path):
        try:
            _check_fields(fields, path)
            split, task = _task_of_line(fields, f"{path.stem}/{number}")
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}:{number}: {error}") from None
        if task.id in ids:
            raise UsageError(f"{path}:{number}: the id {task.id!r} is already used on line {ids[task.id]}")
        ids[task.id] = number
        groups[split].append(task)
    if not ids:
        raise UsageError(f"{path} holds no tasks")
    return FileTasks(path.stem, tuple(groups.pop("train")), {s: tuple(t) for s, t in groups.items()}, seed)


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of a JSONL or Parquet file, without the null columns of a Parquet row. UsageError
    naming file and line for one that cannot be read."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
            yield from enumerate(({k: v for k, v in row.items() if v is not None} for row in rows), 1)
            return
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read the tasks in {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"cannot read the tasks in {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line.decode("utf-8"))
            except json.JSONDecodeError as error:
                raise UsageError(f"{path}:{number}: {error.msg} (column {error.colno})") from None
            except ValueError as error:
                raise UsageError(f"{path}:{number}: {error}") from None


def _check_fields(fields: Any, path: Path) -> None:
    """ValueError for a line that is no object, or has a field that tasks have not."""
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with prompt and reference, got {type(fields).__name__}")
    if not (unknown := [f for f in fields if f not in _FIELDS]):
        return
    message = f"unknown field {unknown[0]!r}"
    columns = {name: obvious_column(name, fields) for name in ("prompt", "reference")}
    renamed, obvious = not columns.keys() <= fields.keys(), "COLUMN" not in columns.values()
    near = get_close_matches(unknown[0], _FIELDS, 1)
    if near and not (renamed and obvious):
        message += f" (did you mean {near[0]!r}?)"
    elif renamed:
        mapped = ", ".join(f"{name}={column}" for name, column in columns.items())
        file = path if path.is_absolute() else f"./{path}"
        message += f". For columns of other names write hf:{file}({mapped})"
    raise ValueError(f"{message}. A task has the fields {', '.join(_FIELDS)}")


def obvious_column(name: str, columns: Iterable[str]) -> str:
    """The one of `columns` that is usual for the prompt or the reference, else `COLUMN`."""
    likely = [column for column in columns if column in (name, *USUAL[name])]
    return name if name in likely else likely[0] if len(likely) == 1 else "COLUMN"


def _task_of_line(fields: dict[str, Any], default_id: str) -> tuple[str, Task]:
    """(split, task) of one decoded line; ValueError says what is wrong with it."""
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
    if metadata.get("verifier", "math") not in BUILT_IN:
        raise ValueError(
            f"metadata names the verifier {metadata['verifier']!r}: a file may name {', '.join(BUILT_IN)}; "
            "for one of your own use --verifier"
        )
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


def load_tasks(text: str, seed: int = 0) -> TaskSource:
    """The task source named by `text`: one of `SOURCES` with options (`arithmetic:levels=1-2`), a
    `FILE.jsonl` (or .parquet), one of `BENCHMARKS`, `module:attribute` or `FILE.py:attribute` (a TaskSource,
    a factory called with `seed`, or a TextEnv class), or several of these with weights
    (`arithmetic*3,rg:chain_sum(min_terms=2)`).

    UsageError says what is wrong with any other text and names the nearest known source."""
    if os.path.isfile(text):
        return read_tasks(Path(text), seed)
    if text.partition(":")[0] in BENCHMARKS:
        from envs.benchmarks import load_benchmark

        return load_benchmark(text)
    parts = members(text)
    if len(parts) > 1:
        from envs.mixture import mix

        return mix(parts, [_load_one(part, seed) for part, _ in parts], seed)
    return _load_one(parts[0][0] if parts else text, seed)


def check_trainable(text: str) -> None:
    """UsageError where `text` names one of `BENCHMARKS`, also in a mixture or an environment, before anything
    is read or fetched."""
    if os.path.isfile(text):
        return
    name = text.partition(":")[0]
    if name in BENCHMARKS:
        raise not_for_training(name)
    for part, _ in members(text):
        spec = read_spec(part)
        for inner in (spec.head, *spec.arguments):
            if inner != text:
                check_trainable(inner)


def not_for_training(benchmark: str) -> UsageError:
    return UsageError(f"{benchmark} is for evaluation: training on it would make its numbers worthless")


def _load_one(text: str, seed: int) -> TaskSource:
    if os.path.isfile(text):
        return read_tasks(Path(text), seed)
    spec = read_spec(text)
    family = spec.head.partition(":")[0]
    if family in SOURCES:
        home, _, factory = SOURCES[family].partition(":")
        return attrgetter(factory)(importlib.import_module(home))(spec, seed)
    if text.endswith((".jsonl", ".parquet")):
        return read_tasks(Path(text), seed)
    module, _, attribute = text.partition(":")
    if attribute and (module.endswith(".py") or module.replace(".", "").replace("_", "").isalnum()):
        return _imported(module, attribute, text, seed)
    raise UsageError(
        f"unknown tasks {text!r}{nearest(family, [*SOURCES, *BENCHMARKS])} "
        f"(known: {', '.join([*SOURCES, *BENCHMARKS])}, a .jsonl or .parquet file, module:attribute, "
        "FILE.py:attribute)"
    )


def _imported(module: str, attribute: str, spec: str, seed: int) -> TaskSource:
    try:
        home = import_file(Path(module)) if module.endswith(".py") else import_module(module)
    except UsageError as error:
        raise UsageError(f"cannot import the tasks {spec!r}: {error}") from error
    except (Exception, SystemExit) as error:  # foreign code at import
        raise UsageError(f"cannot import the tasks {spec!r}: {type(error).__name__}: {error}") from error
    if not hasattr(home, attribute):
        raise UsageError(f"{module} has no attribute {attribute!r} (tasks {spec!r})")
    found = getattr(home, attribute)
    if isinstance(found, TaskSource) and not isinstance(found, type):
        return found
    if isinstance(found, type) and issubclass(found, TextEnv):
        return _environment(found, spec, seed)
    if isinstance(found, type) and issubclass(found, gymnasium.Env):
        raise UsageError(
            f"{attribute} is a gymnasium.Env but not an envs.TextEnv (with begin(task) and respond(action)): "
            "see docs/environments.md"
        )
    try:
        made = found(seed=seed) if callable(found) else found
    except Exception as error:  # foreign code
        raise UsageError(f"the tasks {spec!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(made, TaskSource):
        return made
    raise UsageError(
        f"{spec!r} gave a {type(made).__name__}, not a TaskSource: it needs name, base_template, "
        "chat_template, train(index), split(name, n) and env(task); or name a subclass of envs.TextEnv"
    )


def _environment(made_by: type[TextEnv], spec: str, seed: int) -> TaskSource:
    """The tasks that an environment class draws itself, tried once."""
    from envs.wrapped import EnvironmentTasks

    source = EnvironmentTasks(made_by, spec, seed)
    source.train(0)
    return source
