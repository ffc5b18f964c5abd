"""What can be trained on: every source that has a name, with size, verifier, licence and an example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from envs.hub import PRESETS
from envs.tasks import BENCHMARKS, TaskSource, load_tasks, prompt_text
from reasoner.errors import UsageError

GENERATED = "unlimited"
OWN = ("arithmetic", "countdown", "linear", "systems", "calculus", "number_theory")
WRAPPED = ("self_correct(arithmetic,tries=2)", "tool_use(arithmetic,calls=4)")


@dataclass(frozen=True)
class Entry:
    """One source as it is written after `--tasks`. `size`: problems to train on."""

    spec: str
    size: str
    verifier: str
    licence: str
    example: str


def describe(spec: str) -> Entry:
    """The entry of a source, with its first training problem as the example."""
    source = load_tasks(spec)
    task = source.train(0)
    return Entry(
        spec,
        size(source),
        str(getattr(source, "verifier", task.metadata.get("verifier", "math"))),
        str(getattr(source, "licence", "yours")),
        f"{prompt_text(task.prompt)}  →  {task.reference}",
    )


def size(source: TaskSource) -> str:
    """How many problems there are to train on, as text."""
    training: Any = getattr(source, "training", None)
    return GENERATED if training is None else f"{len(training):,}"


def catalogue() -> Iterator[Entry]:
    """Every source by name: our own generators, environments around them, presets of hub data sets (not
    fetched, so without an example), reasoning-gym's generators where the package is installed."""
    for spec in (*OWN, *WRAPPED):
        yield describe(spec)
    for name, preset in PRESETS.items():
        yield Entry(f"hf:{name}", preset.size, "math", preset.licence, f"(fetches {preset.path})")
    for name in BENCHMARKS:
        yield Entry(name, "0", "math", "", "(for evaluation only: fetched when asked for)")
    if find_spec("reasoning_gym") is None:
        return
    from envs.reasoning_gym import names

    for name in names():
        try:
            yield describe(f"rg:{name}")
        except UsageError as error:  # a generator that needs something this machine has not got
            yield Entry(f"rg:{name}", GENERATED, "reasoning_gym", "Apache-2.0", f"({error})")
