"""Steps that a run had finished after its newest checkpoint: their updates are made again from the journal.

A driver that is killed has finished more steps than its checkpoint knows. Their rollouts, and the order they
were trained in, are in the journal, so the learner can take the same updates again instead of the run going
back; the rollouts sampled by those later policies stay valid. Learner and driver both restore with this what
`reasoner replay` checks: that an update is a function of the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasoner.config import Config
from reasoner.journal import read_step
from reasoner.metrics import read_metrics
from reasoner.rollout_files import groups_of, in_batch_order
from reasoner.types import Group
from reasoner.update import PreparedUpdate, lr_scale, prepare_update


@dataclass(frozen=True)
class FinishedStep:
    """One step as the journal has it."""

    step: int
    groups: list[Group]  # all that the step used or dropped
    fresh: list[Group]  # of those, what was not too old
    prepared: PreparedUpdate | None  # None: no group carried a signal
    lr_scale: float
    metrics: Mapping[str, Any]


def last_finished_step(run_dir: Path, after: int) -> int:
    """The last step of those following `after` that metrics and journal hold whole; else `after`."""
    lines = {line["step"]: line for line in read_metrics(run_dir)}
    step = after
    while (line := lines.get(step + 1)) and read_step(run_dir, step + 1).num_rows == line.get("rollouts"):
        step += 1
    return step


def finished_steps(
    run_dir: Path, after: int, until: int, config_at: Callable[[int], Config]
) -> Iterator[FinishedStep]:
    """The steps `after` + 1 … `until`; `config_at` says what each was made with."""
    lines = {line["step"]: line for line in read_metrics(run_dir)}
    for step in range(after + 1, until + 1):
        table = read_step(run_dir, step)
        groups = groups_of(table)
        fates = dict(zip(table["group_index"].to_pylist(), table["fate"].to_pylist(), strict=True))
        trained = in_batch_order(table, [g for g in groups if fates[g.index] == "trained"])
        config = config_at(step)
        prepared = prepare_update(trained, config) if trained else None
        fresh = [g for g in groups if fates[g.index] != "stale"]
        yield FinishedStep(step, groups, fresh, prepared, lr_scale(config, step - 1), lines[step])
