"""What changed between two models on the same problems, from the samples two evaluations left.

Evaluations are what `reasoner eval RUN` (also with `--checkpoints`) writes under `RUN/eval/`. Only whole
chains with a verdict count, as everywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from reasoner.errors import UsageError
from reasoner.eval_samples import Problem, read_samples

CHARACTERS = 6_000  # of one sample


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Name, label, model and splits of every evaluation of the run that has samples, oldest model first. The
    label is the name without its fingerprint, where no other evaluation has the same."""
    found = []
    for path in (Path(run_dir) / "eval").glob("*/samples.parquet"):
        try:
            result = json.loads((path.parent / "eval.json").read_bytes())
            model, splits = str(result["model"]), sorted(result["splits"])
        except (OSError, ValueError, KeyError, TypeError):
            model, splits = "?", []
        label = path.parent.name.rsplit("-", 1)[0]
        found.append({"name": path.parent.name, "label": label, "model": model, "splits": splits})
    labels = Counter(e["label"] for e in found)
    for e in found:
        e["label"] = e["label"] if labels[e["label"]] == 1 else e["name"]
    return sorted(found, key=lambda e: (e["label"].startswith("step_"), e["label"], e["name"]))


def changes(run_dir: Path, a: str, b: str, split: str) -> dict[str, Any]:
    """The problems both evaluations sampled, the largest change of accuracy first (a loss before a gain of
    the same size), and the means over them."""
    first, second = _problems(run_dir, a), _problems(run_dir, b)
    splits = [name for name in first if name in second]
    if not splits:
        raise UsageError(f"{a} and {b} have no split in common")
    split = split or splits[0]
    if split not in splits:
        raise UsageError(f"split {split!r}: {a} and {b} share {', '.join(splits)}")
    other = {p.task_id: p for p in second[split]}
    rows: list[dict[str, Any]] = []
    for problem in first[split]:
        match = other.get(problem.task_id)
        if match is None or match.prompt != problem.prompt or not problem.chains or not match.chains:
            continue
        before, after = _accuracy(problem), _accuracy(match)
        rows.append(
            {
                "task_id": problem.task_id,
                "prompt": problem.prompt,
                "reference": problem.reference,
                "before": before,
                "after": after,
                "tokens_before": _tokens(problem),
                "tokens_after": _tokens(match),
                "samples": [len(problem.chains), len(match.chains)],
            }
        )
    rows.sort(key=lambda r: (-abs(r["after"] - r["before"]), r["after"] - r["before"]))
    count = len(rows)
    return {
        "splits": splits,
        "split": split,
        "problems": count,
        "before": sum(r["before"] for r in rows) / count if count else None,
        "after": sum(r["after"] for r in rows) / count if count else None,
        "better": sum(r["after"] > r["before"] for r in rows),
        "worse": sum(r["after"] < r["before"] for r in rows),
        "rows": rows[:1000],
    }


def both(run_dir: Path, a: str, b: str, split: str, task_id: str) -> dict[str, Any]:
    """The samples of one problem from both evaluations."""
    sides = []
    for name in (a, b):
        found = next((p for p in _problems(run_dir, name).get(split, []) if p.task_id == task_id), None)
        if found is None:
            raise UsageError(f"{name} has no problem {task_id!r} in split {split!r}")
        sides.append(found)
    keys = ("sample", "status", "tokens", "truncated", "mean_logprob")
    return {
        "prompt": sides[0].prompt,
        "reference": sides[0].reference,
        "sides": [
            [
                {key: r[key] for key in keys} | {"completion": r["completion"][:CHARACTERS]}
                for r in p.chains[:64]
            ]
            for p in sides
        ],
    }


def _problems(run_dir: Path, name: str) -> dict[str, list[Problem]]:
    path = Path(run_dir) / "eval" / name / "samples.parquet"
    if name not in {e["name"] for e in evaluations(run_dir)}:
        raise UsageError(f"there is no evaluation {name!r} under {Path(run_dir) / 'eval'}")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _stamp: int) -> dict[str, list[Problem]]:
    return read_samples(path)


def _accuracy(problem: Problem) -> float:
    return sum(r["status"] == "correct" for r in problem.chains) / len(problem.chains)


def _tokens(problem: Problem) -> float:
    return sum(r["tokens"] for r in problem.chains) / len(problem.chains)
