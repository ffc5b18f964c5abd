"""What can be trained on: every source that has a name, with size, verifier, licence and an example.

Also what may be said to others of the sources in a specification: their licences, and no path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from envs.benchmarks import SETS
from envs.hub import PRESETS
from envs.specs import members, read_spec
from envs.tasks import BENCHMARKS, SOURCES, TaskSource, load_tasks, prompt_text
from reasoner.errors import UsageError

GENERATED = "unlimited"
OWN = ("arithmetic", "countdown", "linear", "systems", "calculus", "number_theory")
WRAPPERS = ("self_correct", "tool_use")
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
    fetched), sets for evaluation only, reasoning-gym's generators where the package is installed."""
    for spec in (*OWN, *WRAPPED):
        yield describe(spec)
    for name, preset in PRESETS.items():
        yield Entry(f"hf:{name}", preset.size, "math", preset.licence, preset.example)
    for name, benchmark in SETS.items():
        example = f"(for evaluation only: fetches {benchmark.repository} when asked for)"
        yield Entry(name, "0", "math", benchmark.licence, example)
    if find_spec("reasoning_gym") is None:
        return
    from envs.reasoning_gym import names

    for name in names():
        try:
            yield describe(f"rg:{name}")
        except UsageError as error:  # a generator that needs something this machine has not got
            yield Entry(f"rg:{name}", GENERATED, "reasoning_gym", "Apache-2.0", f"({error})")


def licences(tasks: str) -> dict[str, str]:
    """The licences of the sources by name in a task specification; files and modules are the user's."""
    found: dict[str, str] = {}
    for part, _ in _parts(tasks):
        spec = read_spec(part)
        family, _, name = spec.head.partition(":")
        if family in WRAPPERS:
            found |= {
                source: licence for inner in spec.arguments for source, licence in licences(inner).items()
            }
        elif spec.head in OWN or family == "rg":
            found[spec.head] = "Apache-2.0"
        elif family == "hf" and name in PRESETS:
            found[spec.head] = PRESETS[name].licence
    return found


def without_paths(tasks: str) -> str:
    """A task specification in one line, with files and folders of this machine by their names only."""
    shown = []
    for part, weight in _parts(tasks):
        spec = read_spec(part)
        text = part.replace(spec.head, _name(spec.head), 1)
        if spec.head in WRAPPERS:
            for inner in spec.arguments:
                text = text.replace(inner, without_paths(inner), 1)
        shown.append(text if weight == 1 else f"{text}*{weight:g}")
    return ", ".join(shown)


def _parts(tasks: str) -> list[tuple[str, float]]:
    return [(tasks, 1.0)] if os.path.isfile(tasks) else members(" ".join(tasks.split()))


def _name(head: str) -> str:
    """`hf:/home/me/sums.parquet` as `hf:sums.parquet`; `hf:OWNER/NAME` stays."""
    family, colon, path = head.partition(":")
    if family not in (*SOURCES, *BENCHMARKS):
        family, colon, path = "", "", head
    on_the_hub = family == "hf" and not (
        os.path.exists(path) or path.startswith(("/", ".", "~")) or path.endswith((".jsonl", ".parquet"))
    )
    return head if on_the_hub else family + colon + path.rstrip("/").rpartition("/")[2]
