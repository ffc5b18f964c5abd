"""Two evaluations of the same problems, paired: differences, their intervals and p-values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasoner.errors import ReasonerError, UsageError
from reasoner.evaluation.store import EvalStore
from reasoner.evaluation.summary import SplitSamples, families_of, problems_of
from reasoner.scaling import ProblemSamples, paired_comparison
from reasoner.types import Task


def compare(splits: Sequence[SplitSamples], other: Path, seed: int) -> dict[str, Any]:
    """`comparison` of eval.json, by split: this one minus `other` at k = 1 and the largest common k; of
    splits with several families also each family at k = 1."""
    found: dict[str, Any] = {}
    by_family: dict[str, Any] = {}
    for split in splits:
        mine, theirs = problems_of(split), _problems(other, split.name, split.tasks)
        common = {p.task_id for p in theirs}
        shared = [p for p in mine if p.task_id in common]
        if shared:
            most = min(min(p.n for p in shared), min(p.n for p in theirs))
            found[split.name] = _comparisons(shared, theirs, 2 ** (most.bit_length() - 1), seed)
            by_family[split.name] = {
                family: paired_comparison(members, theirs, 1, seed)
                for family, members in families_of(split, shared).items()
            }
    return {"other": str(other), "model": _model_of(other), "splits": found, "by_family": by_family}


def check_comparable(directory: Path, tasks: Mapping[str, Sequence[Task]]) -> None:
    """Raises UsageError when `directory` is no evaluation, or has no sample of any of these tasks."""
    if not (directory / "samples.sqlite").is_file():
        raise UsageError(f"--compare {directory}: no evaluation is there (no samples.sqlite)")
    try:
        common = any(_problems(directory, split, problems) for split, problems in tasks.items())
    except ReasonerError as error:
        raise UsageError(f"--compare {directory}: {error}") from None
    if not common:
        raise UsageError(f"--compare {directory}: it has no problem in common with this evaluation")


def _comparisons(
    mine: Sequence[ProblemSamples], theirs: Sequence[ProblemSamples], most: int, seed: int
) -> dict[str, Any]:
    wanted = [("pass@k", 1), ("pass@k", most), ("maj@k", most)]
    return {
        metric.replace("k", str(k)): paired_comparison(mine, theirs, k, seed, metric)
        for metric, k in dict.fromkeys(wanted)
    }


def _problems(directory: Path, split: str, tasks: Sequence[Task]) -> list[ProblemSamples]:
    """The problems of an evaluation's split, those that are the same tasks."""
    with EvalStore.reopen(directory) as store:
        stored = {task.id: task for task in store.tasks(split)}
        same = [task for task in tasks if task.id in stored and stored[task.id].prompt == task.prompt]
        theirs = SplitSamples.of(split, same, store.samples(split, graded=True), wanted=2**31)
    return problems_of(theirs)


def _model_of(directory: Path) -> str | None:
    path = directory / "eval.json"
    return json.loads(path.read_text()).get("model") if path.is_file() else None
