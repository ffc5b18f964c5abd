"""reasoning-gym's generators as task sources: `rg:maze`, `rg:chain_sum(min_terms=2)`, `rg:maze(levels=0-3)`.

Position `i` of a stream is a position of a short dataset of its own seed (the package's own streams with
neighbouring seeds overlap). Problems whose question falls into a bucket of a stable hash are held out and
never trained on. With `levels`, problems are drawn from the generator's curriculum at those levels, the level
is the difficulty, and the next level above is the out-of-distribution split.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields
from functools import cache
from hashlib import blake2b
from typing import Any

from envs.specs import Spec, check_known, nearest, value
from envs.specs import levels as read_levels
from envs.tasks import SPLITS, SingleTurnTasks
from reasoner.errors import UsageError
from reasoner.types import Task
from verifiers.reasoning_gym import CHUNK, KEY, generator, package

HELD_OUT_ONE_IN = 4  # few draws are wasted on finding held-out problems: some generators are slow
_REDRAWS = 64  # positions tried for one that is not held out
_DRAWS_A_TASK = 4 * HELD_OUT_ONE_IN  # of a split, after which a generator counts as exhausted
_DRAWS_LEAST = 64 * HELD_OUT_ONE_IN  # of a small split: of 16 draws in a row, none is held out once in 100
#: Where a generator without one right answer keeps an example of one, in its metadata.
_EXAMPLES = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
ANY_ANSWER = "(any answer that the generator accepts)"  # the reference where none is known
_SEED_FIELDS = ("seed", "size")  # of a generator's configuration: ours to set


def names() -> list[str]:
    """The generators of the installed package."""
    package()
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


@dataclass(frozen=True)
class ReasoningGymTasks(SingleTurnTasks):
    """One generator. `options` are fields of its configuration; `levels` those of its curriculum."""

    generator: str
    options: Mapping[str, Any] = field(default_factory=dict)
    levels: tuple[int, ...] = ()
    seed: int = 0
    base_template: str = "{prompt}\n"
    chat_template: str = "{prompt}\nGive the final answer in <answer></answer> tags."
    verifier: str = "reasoning_gym"
    licence: str = "Apache-2.0"

    def __post_init__(self) -> None:
        if self.generator not in names():
            raise UsageError(
                f"reasoning-gym has no generator {self.generator!r}{nearest(self.generator, names())}"
            )
        top = max_levels(self.generator) - 1
        if self.levels and max(self.levels) > top:
            raise UsageError(
                f"{self.name} has no curriculum: leave levels out"
                if top < 0
                else f"{self.name} has no level {max(self.levels)}: its curriculum has levels 0 to {top}"
            )
        self._check_options()

    def _check_options(self) -> None:
        known = [*configuration(self.generator), *(["levels"] if max_levels(self.generator) else [])]
        check_known(self.name, self.options, known)
        try:
            for level in self.levels or (None,):
                generator(self.generator, self._options(level), seed=0)
        except UsageError:
            raise
        except Exception as error:  # the generator's own checks, of any type
            given = ", ".join(f"{name}={v!r}" for name, v in self.options.items())
            raise UsageError(f"{self.name} refuses ({given}): {type(error).__name__}: {error}") from None

    @property
    def name(self) -> str:
        return f"rg:{self.generator}"

    def train(self, index: int) -> Task:
        """Problem `index` of the stream; never one that is held out, as far as the generator has others."""
        if index < 0:
            raise UsageError(f"a position in the training stream cannot be negative: {index}")
        for redraw in range(_REDRAWS):
            task = self._draw(f"train:{self.seed}", index, redraw, self._level(index))
            if not held_out(task.prompt):
                break
        return task

    def split(self, name: str, n: int) -> list[Task]:
        """Different problems, the same for every seed; fewer than `n` where the generator has no more."""
        if name not in SPLITS:
            raise UsageError(f"{self.name} has no split {name!r}: choose held_out or ood")
        above = max(self.levels, default=-1) + 1
        if name == "ood" and (not self.levels or above >= max_levels(self.generator)):
            return []
        found: dict[Any, Task] = {}
        for index in range(max(_DRAWS_A_TASK * n, _DRAWS_LEAST if n else 0)):
            level = self._level(index) if name == "held_out" else above
            task = self._draw(name, index, 0, level)
            if name == "ood" or held_out(task.prompt):
                found.setdefault(task.prompt, task)
            if len(found) == n:
                break
        return list(found.values())

    def _level(self, index: int) -> int | None:
        if not self.levels:
            return None
        return self.levels[_hash(f"level:{self.seed}:{index}") % len(self.levels)]

    def _options(self, level: int | None) -> dict[str, Any]:
        return dict(self.options) if level is None else {**at_level(self.generator, level), **self.options}

    def _draw(self, stream: str, index: int, redraw: int, level: int | None) -> Task:
        chunk, position = divmod(index, CHUNK)
        seed = _hash(f"{stream}:{chunk}:{redraw}") % 2**31
        options = self._options(level)
        with redirect_stdout(io.StringIO()):  # some generators print while they work
            found = generator(self.generator, options, seed)[position]
        entry = json.loads(json.dumps(found, default=str))  # gsm_symbolic keeps Fractions
        made = {"name": self.generator, "options": options}
        made |= {"answer": entry["answer"], "metadata": entry["metadata"]}
        return Task(
            f"{self.name}/{stream.replace(':', '/')}/{index}",
            entry["question"],
            gold(self.generator, entry),
            self.name,
            float(level or 0),
            {"verifier": self.verifier, KEY: made},
        )


def gold(name: str, entry: Mapping[str, Any]) -> str:
    """The answer that the generator gives, or the example it keeps where many are right."""
    answer = entry["answer"] if entry["answer"] is not None else entry["metadata"].get(_EXAMPLES.get(name))
    if answer is None:
        return ANY_ANSWER
    return json.dumps(answer) if isinstance(answer, dict) else str(answer)


def from_spec(spec: Spec, seed: int) -> ReasoningGymTasks:
    """The source of `rg:NAME(option=value, …)`."""
    options = {name: value(text) for name, text in spec.options.items() if name != "levels"}
    if spec.arguments:
        raise UsageError(f"{spec.head}: {spec.arguments[0]!r} is no option: write name=value")
    chosen = read_levels(spec.options["levels"]) if "levels" in spec.options else ()
    return ReasoningGymTasks(spec.head.removeprefix("rg:"), options, chosen, seed)


@cache
def configuration(name: str) -> tuple[str, ...]:
    """The options of a generator."""
    from reasoning_gym.factory import DATASETS

    return tuple(f.name for f in fields(DATASETS[name][1]) if f.init and f.name not in _SEED_FIELDS)


@cache
def max_levels(name: str) -> int:
    """How many levels the generator's curriculum has, 0 without one."""
    from reasoning_gym.factory import create_curriculum, has_curriculum

    if not has_curriculum(name):
        return 0
    return max((len(a.levels) for a in create_curriculum(name).attributes.values()), default=0)


@cache
def at_level(name: str, level: int) -> dict[str, Any]:
    """The options that differ from the defaults when every attribute of the curriculum is at `level`."""
    from reasoning_gym.factory import DATASETS, create_curriculum

    curriculum = create_curriculum(name)
    curriculum.set_global_level(level)
    chosen, default = curriculum.generate_configuration(), DATASETS[name][1]()
    return {o: v for o in configuration(name) if (v := getattr(chosen, o)) != getattr(default, o)}


def held_out(question: Any) -> bool:
    """Whether a question is reserved for held-out evaluation: a stable hash, the same in every run."""
    return _hash(f"held-out:{question}") % HELD_OUT_ONE_IN == 0


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8, person=b"reasoner-rg").digest(), "big")
