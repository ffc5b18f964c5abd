"""Several task sources in one stream, by weight: every position belongs to one member, as a pure function.

The stream goes in blocks. A block holds each member as often as its weight says (fractions carry over to the
next block), in an order of its own; so shares are exact after every block, and a member is read in the order
of its own stream without gaps, which a finite source needs for its epochs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from random import Random
from typing import TYPE_CHECKING

from envs.tasks import TaskSource
from reasoner.errors import UsageError
from reasoner.types import Task

if TYPE_CHECKING:
    from envs.base import TextEnv

KEY = "source"  # in Task.metadata: the position of its member; "source1" … of a mixture around another


@dataclass(frozen=True)
class Mixture:
    """`weights[i]` of the stream comes from `sources[i]`. Tasks keep their family; their ids begin with the
    number of their source."""

    sources: tuple[TaskSource, ...]
    weights: tuple[float, ...]
    labels: tuple[str, ...]
    seed: int = 0
    base_template: str = "{prompt}\n"
    chat_template: str = "{prompt} Give the final answer in \\boxed{{}}."

    @property
    def name(self) -> str:
        return ",".join(self.labels)

    @property
    def _key(self) -> str:
        return f"{KEY}{_nesting(self) - 1 or ''}"

    @property
    def finite(self) -> bool:
        return any(source.finite for source in self.sources)

    def member(self, task: Task) -> TaskSource:
        """The source that a task of this mixture comes from."""
        return self.sources[task.metadata[self._key]]

    def env(self, task: Task) -> TextEnv:
        return self.member(task).env(task)

    def train(self, index: int) -> Task:
        if index < 0:
            raise UsageError(f"a position in the training stream cannot be negative: {index}")
        member, position = self._place(index, self.seed)
        return self._labelled(member, self.sources[member].train(position))

    def split(self, name: str, n: int) -> list[Task]:
        """The first `n` tasks, by weight; a member that has no more leaves its places to the others. The same
        for every seed, and a smaller set is the beginning of a larger one."""
        found: dict[int, list[Task]] = {member: [] for member in range(len(self.sources))}
        full = set(found)  # members that have given all they were asked for
        while True:
            open_places = (
                (member, position)
                for member, position in (self._place(i, seed=0) for i in count())
                if member in full or position < len(found[member])
            )
            there = n if full else min(n, sum(map(len, found.values())))
            places = list(islice(open_places, there))
            asked = Counter(member for member, _ in places)
            for member, wanted in asked.items():
                if wanted > len(found[member]):
                    found[member] = self.sources[member].split(name, wanted)
            short = {member for member in full if len(found[member]) < asked[member]}
            if not short:
                return [self._labelled(member, found[member][position]) for member, position in places]
            full -= short

    def _labelled(self, member: int, task: Task) -> Task:
        return replace(task, id=f"{member}:{task.id}", metadata={**task.metadata, self._key: member})

    def _place(self, index: int, seed: int) -> tuple[int, int]:
        """(member, position in its stream) of a position in this stream."""
        shares = [w / math.fsum(self.weights) for w in self.weights]
        size = math.ceil(2 / min(shares))  # every member at least once a block
        block, offset = divmod(index, size)
        before = list(_counts(shares, block * size))
        after = _counts(shares, (block + 1) * size)
        order = [m for m, (a, b) in enumerate(zip(before, after, strict=True)) for _ in range(b - a)]
        Random(f"mixture:{seed}:{block}").shuffle(order)
        return order[offset], before[order[offset]] + order[:offset].count(order[offset])


def _nesting(source: object) -> int:
    """How many mixtures are in each other here, 0 for a plain source."""
    inside = getattr(source, "sources", None) or [getattr(source, "source", None)]
    return isinstance(source, Mixture) + max((_nesting(s) for s in inside if s is not None), default=0)


def _counts(shares: list[float], total: int) -> Iterator[int]:
    """How many of the first `total` positions, a number of whole blocks, belong to each member."""
    reached, until = 0, 0.0
    for i, share in enumerate(shares):
        until = 1.0 if i == len(shares) - 1 else until + share
        boundary = math.floor(total * until + 0.5)
        yield boundary - reached
        reached = boundary


def mix(specs: list[tuple[str, float]], sources: list[TaskSource], seed: int) -> Mixture:
    """The mixture of `sources`, each named by its (spec, weight); a spec that comes twice is numbered."""
    seen: Counter[str] = Counter()
    labels = []
    for spec, _ in specs:
        seen[spec] += 1
        labels.append(spec if seen[spec] == 1 else f"{spec}#{seen[spec]}")
    return Mixture(tuple(sources), tuple(weight for _, weight in specs), tuple(labels), seed)
