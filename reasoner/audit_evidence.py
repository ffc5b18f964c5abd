"""What an audit looks at (recorded rollouts, metrics) and how it compares a run's beginning with its end."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Key = tuple[int, int]  # group index, place in the group


@dataclass(frozen=True)
class Record:
    """What the checks need of one rollout. `judged_by` names the task's own verifier, where it has one."""

    step: int
    group_index: int
    rollout: int
    task_id: str
    family: str
    difficulty: float
    prompt: str
    references: tuple[str, ...]
    completion: str
    status: str
    extracted: str | None
    detail: str
    truncated: bool
    tokens: int  # sampled ones
    judged_by: str | None = None

    @property
    def key(self) -> Key:
        return self.group_index, self.rollout

    @property
    def rewarded(self) -> bool:
        return self.status == "correct"

    @property
    def stratum(self) -> tuple[str, float]:
        return self.family, self.difficulty


@dataclass(frozen=True)
class Finding:
    """One suspicion. `count` of `of` rollouts; `flagged` are those to read."""

    check: str
    severity: float
    conclusion: str
    count: int
    of: int
    flagged: tuple[Key, ...] = ()

    @property
    def above_line(self) -> bool:
        return self.severity >= 1


@dataclass(frozen=True)
class Evidence:
    """The rollouts of a run in the order of its steps, and its lines of metrics.jsonl."""

    records: tuple[Record, ...]
    metrics: tuple[Mapping[str, Any], ...] = ()

    @cached_property
    def _thirds(self) -> tuple[set[int], set[int]]:
        steps = sorted({r.step for r in self.records})
        size = len(steps) // 3
        return set(steps[:size]), set(steps[-size:] if size else steps)

    @cached_property
    def early(self) -> list[Record]:
        return [r for r in self.records if r.step in self._thirds[0]]

    @cached_property
    def late(self) -> list[Record]:
        return [r for r in self.records if r.step in self._thirds[1]]

    @cached_property
    def late_rewarded(self) -> list[Record]:
        return [r for r in self.late if r.rewarded]


def at_least(count: int, of: int, z: float = 1.645) -> float:
    """Lower end of the Wilson score interval of a share (one-sided 95 %); 0 of nothing."""
    if not of or not count:
        return 0.0
    p, zz = count / of, z * z
    centre, spread = p + zz / (2 * of), z * math.sqrt(p * (1 - p) / of + zz / (4 * of * of))
    return max(0.0, (centre - spread) / (1 + zz / of))


def matched_rise(
    early: Sequence[Record], late: Sequence[Record], holds: Callable[[Record], bool]
) -> tuple[float, float]:
    """How much more often `holds` is true late than early on tasks of the same family and difficulty
    (weighted by the late tasks), and its standard error over tasks. (0, 0) when nothing can be compared."""
    return stratified(tasks_of(early, holds), tasks_of(late, holds))


def matched_mean(
    part: Sequence[Record], other: Sequence[Record], value: Callable[[Record], float]
) -> float | None:
    """The mean of `value` over `part`, every family and difficulty that both parts have counting the same."""
    strata = {r.stratum for r in part} & {r.stratum for r in other}
    means = [
        sum(values) / len(values)
        for stratum in strata
        if (values := [value(r) for r in part if r.stratum == stratum])
    ]
    return sum(means) / len(means) if means else None


def held_out_change(
    metrics: Sequence[Mapping[str, Any]], family: str | None = None
) -> tuple[float, float] | None:
    """Last minus first held-out pass@1 (of the family, where evaluations tell families apart) and its
    standard error over problems; None with fewer than two evaluations of it."""
    found = []
    for line in metrics:
        held_out = (line.get("eval") or {}).get("held_out") or {}
        by_family = held_out.get("by_family") if family is not None else None
        entry = held_out if by_family is None else by_family.get(family) or {}
        if entry.get("pass@1") is not None:
            found.append(
                (float(entry["pass@1"]), int(entry.get("problems") or held_out.get("problems") or 1))
            )
    if len(found) < 2:
        return None
    (first, n), (last, m) = found[0], found[-1]
    return last - first, math.sqrt(first * (1 - first) / n + last * (1 - last) / m)


def tasks_of(
    records: Iterable[Record], holds: Callable[[Record], bool] = lambda r: r.rewarded
) -> dict[tuple[str, float], list[float]]:
    """By kind of task, the share of each group's rollouts for which `holds` is true."""
    groups: dict[tuple[str, float], dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        groups[r.stratum][r.group_index].append(holds(r))
    return {
        stratum: [sum(values) / len(values) for values in members.values()]
        for stratum, members in groups.items()
    }


def stratified(
    before: Mapping[tuple[str, float], Sequence[float]], after: Mapping[tuple[str, float], Sequence[float]]
) -> tuple[float, float]:
    """Mean of `after` minus `before` over kinds with two tasks on each side, and its standard error."""
    common = [s for s in after if len(after[s]) > 1 and len(before.get(s, ())) > 1]
    total = sum(len(after[s]) for s in common)
    if not total:
        return 0.0, 0.0
    rise = variance = 0.0
    for s in common:
        weight = len(after[s]) / total
        rise += weight * (_mean(after[s]) - _mean(before[s]))
        variance += weight**2 * (_variance(after[s]) / len(after[s]) + _variance(before[s]) / len(before[s]))
    return rise, math.sqrt(variance)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1)
