"""What our generators share: a stream that is a pure function of (seed, index), splits, levels and families.

A generator is a table of families, each with the function `(rng, level) -> Problem` and its levels. A problem
has a canonical key; keys in a bucket of a stable hash are held out and never trained on. The levels above
those trained on are the out-of-distribution split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Any, ClassVar

from envs.specs import Spec, check_options, nearest
from envs.specs import levels as read_levels
from envs.tasks import SPLITS, SingleTurnTasks
from reasoner.errors import UsageError
from reasoner.types import Task

HELD_OUT_ONE_IN = 16
_DRAWS_A_TASK = 20 * HELD_OUT_ONE_IN  # of a split, after which a generator counts as exhausted


@dataclass(frozen=True)
class Problem:
    """`key` names the problem: two with the same key are the same problem in other words. Where writing it
    down is slow, `write` does so once the key is found to be wanted."""

    prompt: str
    reference: str
    key: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[], Problem] | None = None


@dataclass(frozen=True)
class Family:
    """`levels` are trained on, `ood_levels` only evaluated."""

    draw: Callable[[Random, int], Problem]
    levels: tuple[int, ...] = (1, 2, 3)
    ood_levels: tuple[int, ...] = (4,)
    verifier: str = "math"


def held_out(key: str) -> bool:
    """Whether a problem is reserved for held-out evaluation: a stable hash, the same in every run."""
    digest = blake2b(key.encode(), digest_size=8, person=b"reasoner-tasks").digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class GeneratedTasks(SingleTurnTasks):
    """A task source over the table `FAMILIES`. `levels` and `families` restrict what is drawn."""

    seed: int = 0
    levels: tuple[int, ...] = ()
    families: tuple[str, ...] = ()
    base_template: str = "{prompt}\n"
    chat_template: str = "{prompt} Give the final answer in \\boxed{{}}."

    name: ClassVar[str]
    FAMILIES: ClassVar[Mapping[str, Family]]
    licence: ClassVar[str] = "Apache-2.0"

    def __post_init__(self) -> None:
        known: dict[str, Sequence[Any]] = {
            "level": sorted({level for f in self.FAMILIES.values() for level in f.levels}),
            "family": list(self.FAMILIES),
        }
        for kind, given in (("level", self.levels), ("family", self.families)):
            if unknown := [g for g in given if g not in known[kind]]:
                choice = [str(k) for k in known[kind]]
                raise UsageError(
                    f"{self.name} has no {kind} {unknown[0]!r}{nearest(str(unknown[0]), choice)}"
                    f" (choose from {', '.join(choice)})"
                )
        if not self.cells():
            raise UsageError(f"{self.name} has no {' or '.join(self.families)} at the levels {self.levels}")

    @classmethod
    def from_spec(cls, spec: Spec, seed: int) -> GeneratedTasks:
        """The source of `NAME:levels=1-2,families=a|b`."""
        check_options(spec, ("levels", "families"))
        chosen: dict[str, Any] = {}
        if "levels" in spec.options:
            chosen["levels"] = read_levels(spec.options["levels"])
        if "families" in spec.options:
            chosen["families"] = tuple(spec.options["families"].split("|"))
        return cls(seed, **chosen)

    @property
    def verifier(self) -> str:
        return ", ".join(dict.fromkeys(family.verifier for family in self.FAMILIES.values()))

    def cells(self, ood: bool = False) -> list[tuple[str, int]]:
        """The (family, level) pairs that are drawn from."""
        return [
            (name, level)
            for name, family in self.FAMILIES.items()
            if name in (self.families or self.FAMILIES)
            for level in (family.ood_levels if ood else family.levels)
            if ood or not self.levels or level in self.levels
        ]

    def train(self, index: int) -> Task:
        """Problem `index` of the unlimited stream; never one that is held out."""
        if index < 0:
            raise UsageError(f"a position in the training stream cannot be negative: {index}")
        rng = Random(f"{self.name}:train:{self.seed}:{index}")
        cell = rng.choice(self.cells())
        while held_out((problem := self._draw(rng, cell)).key):
            pass
        return self._task(f"train/{self.seed}/{index}", problem, cell)

    def split(self, name: str, n: int) -> list[Task]:
        """The first `n` different problems, over all cells in turn, the same for every seed; fewer where
        there are no more."""
        if name not in SPLITS:
            raise UsageError(f"{self.name} has no split {name!r}: choose held_out or ood")
        cells = self.cells(ood=name == "ood")
        found: dict[str, Task] = {}
        for turn in range(_DRAWS_A_TASK * n if cells else 0):
            cell = (
                cells[len(found) % len(cells)] if turn < _DRAWS_A_TASK * n // 2 else cells[turn % len(cells)]
            )
            problem = self._draw(Random(f"{self.name}:{name}:{turn}"), cell)
            if problem.key not in found and (name == "ood" or held_out(problem.key)):
                found[problem.key] = self._task(f"{name}/{len(found)}", problem, cell)
            if len(found) == n:
                break
        return list(found.values())

    def _draw(self, rng: Random, cell: tuple[str, int]) -> Problem:
        return self.FAMILIES[cell[0]].draw(rng, cell[1])

    def _task(self, position: str, problem: Problem, cell: tuple[str, int]) -> Task:
        family, level = cell
        problem = problem if problem.write is None else problem.write()
        metadata = {"verifier": self.FAMILIES[family].verifier, **problem.metadata}
        return Task(
            f"{self.name}/{position}", problem.prompt, problem.reference, family, float(level), metadata
        )
