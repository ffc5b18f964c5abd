"""`reasoner audit RUN`: looks for reward hacking and verifier errors in what a run has recorded.

Reads the Parquet rollouts and metrics.jsonl, also while the run goes on, and writes `RUN/audit.json`, which
`reasoner view` shows. A finding is a reason to read the rollouts it names, not a proof; nothing above the
line is no proof of the opposite. Long runs are sampled: whole steps, evenly spread, the first and the last
among them. With another verifier, that one judges the same completions in processes of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from reasoner.audit_checks import CHECKS, disagreements
from reasoner.audit_evidence import Evidence, Finding, Key, Record
from reasoner.config import Config
from reasoner.durable import write_atomically
from reasoner.errors import UsageError
from reasoner.metrics import plain, read_metrics
from reasoner.rejudge import Judge
from reasoner.rollout_files import groups_of, read_table, step_paths, task_from_json
from reasoner.types import UNSCORED

SCHEMA = 1
MAX_ROLLOUTS = 20_000
MAX_FLAGGED = 10_000  # of one finding in the file
EXAMPLES = 3
SHOWN_CHARS = 400  # of an example's completion: its end
_COLUMNS = (
    "step",
    "group_index",
    "rollout",
    "task",
    "completion",
    "status",
    "extracted",
    "detail",
    "truncated",
    "action_mask",
)


@dataclass(frozen=True)
class Audit:
    """All findings, the worst first, over `records`, those rollouts that were read."""

    run: str
    findings: tuple[Finding, ...]
    records: tuple[Record, ...]
    steps: int  # read
    of_steps: int
    verifier: str | None  # the other one

    @property
    def conclusion(self) -> str:
        """One line."""
        above = [f.check.replace("_", " ") for f in self.findings if f.above_line]
        where = f"{len(self.records):,} rollouts of {self.steps} of {self.of_steps} steps"
        if not above:
            return f"nothing above the line in {where}"
        plural = "s" if len(above) > 1 else ""
        return f"{len(above)} finding{plural} above the line in {where}: {', '.join(above)}"

    def to_json(self) -> dict[str, Any]:
        """The contents of audit.json (docs/audit.md)."""
        by_key = {r.key: r for r in self.records}
        return {
            "schema": SCHEMA,
            "run": self.run,
            "conclusion": self.conclusion,
            "rollouts": len(self.records),
            "steps": self.steps,
            "of_steps": self.of_steps,
            "verifier": self.verifier,
            "findings": [
                {
                    "check": f.check,
                    "severity": f.severity,
                    "above_line": f.above_line,
                    "conclusion": f.conclusion,
                    "count": f.count,
                    "of": f.of,
                    "examples": [_example(by_key[key]) for key in _spread(f.flagged, EXAMPLES)],
                    "flagged": [list(key) for key in f.flagged[:MAX_FLAGGED]],
                }
                for f in self.findings
            ],
        }


def audit_run(
    run_dir: Path,
    config: Config,
    *,
    verifier: str | Callable[..., Any] | None = None,
    max_rollouts: int = MAX_ROLLOUTS,
) -> Audit:
    """Audits a run and writes `run_dir/audit.json`.

    Raises UsageError when the run has no compacted step yet or the other verifier cannot be loaded."""
    paths = step_paths(run_dir)
    if not paths:
        raise UsageError(f"{run_dir} has no finished step yet: there is nothing to audit")
    chosen = _chosen(list(paths.values()), max_rollouts)
    records: list[Record] = []
    for path in chosen:
        records += _records(read_table(path, _COLUMNS).to_pylist())
    evidence = Evidence(tuple(records), tuple(read_metrics(run_dir)))
    findings = [finding for check in CHECKS for finding in check(evidence)]
    if verifier is not None:
        findings += _second_verifier(chosen, config, verifier, records)
    findings.sort(key=lambda f: -f.severity)
    name = (
        verifier if isinstance(verifier, str) or verifier is None else getattr(verifier, "__qualname__", "?")
    )
    done = Audit(str(run_dir), tuple(findings), tuple(records), len(chosen), len(paths), name)
    write_atomically(
        Path(run_dir) / "audit.json", json.dumps(plain(done.to_json()), indent=1).encode() + b"\n"
    )
    return done


def _chosen(paths: Sequence[Path], max_rollouts: int) -> list[Path]:
    """Whole steps, evenly spread, with about `max_rollouts` rollouts."""
    sizes = [pq.ParquetFile(path).metadata.num_rows for path in (paths[0], paths[len(paths) // 2], paths[-1])]
    count = max(1, min(len(paths), int(max_rollouts // max(1, max(sizes)))))
    if count == 1:
        return [paths[-1]]
    return [paths[round(i * (len(paths) - 1) / (count - 1))] for i in range(count)]


def _records(rows: Iterable[dict[str, Any]]) -> list[Record]:
    found = []
    for row in rows:
        task = task_from_json(row["task"])
        prompt = task.prompt if isinstance(task.prompt, str) else "\n".join(m["content"] for m in task.prompt)
        own = task.metadata.get("verifier")
        found.append(
            Record(
                step=row["step"],
                group_index=row["group_index"],
                rollout=row["rollout"],
                task_id=task.id,
                family=task.family,
                difficulty=task.difficulty,
                prompt=prompt,
                references=task.references,
                completion=row["completion"],
                status=row["status"] or "masked",
                extracted=row["extracted"],
                detail=row["detail"] or "",
                truncated=row["truncated"],
                tokens=sum(row["action_mask"]),
                judged_by=None if own is None else str(own),
            )
        )
    return found


def _second_verifier(
    paths: Sequence[Path], config: Config, verifier: str | Callable[..., Any], records: Sequence[Record]
) -> list[Finding]:
    """The findings of another verifier's verdicts on the same completions, a step at a time."""
    right: dict[Key, bool] = {}
    with Judge(verifier) as judge:
        for path in paths:
            groups = groups_of(read_table(path))
            for group, future in zip(groups, judge.submit(groups, config), strict=True):
                for i, verdict in enumerate(future.result()):
                    if verdict.status not in UNSCORED:
                        right[group.index, i] = verdict.is_correct
        name = ", ".join(judge.rewards.verifiers)
    both = [r for r in records if r.key in right and r.status not in UNSCORED]
    if not both:
        raise UsageError(f"verifier {verifier!r} gave no verdict on any of {len(records)} rollouts")
    return [replace(f, check=f"{f.check}_by_other") for f in disagreements(name, both, right)]


def _spread(keys: Sequence[Key], count: int) -> list[Key]:
    """First, last and between, so that examples are not all of one step."""
    if len(keys) <= count:
        return list(keys)
    return [keys[round(i * (len(keys) - 1) / (count - 1))] for i in range(count)]


def _example(record: Record) -> dict[str, Any]:
    return {
        "step": record.step,
        "group_index": record.group_index,
        "rollout": record.rollout,
        "task_id": record.task_id,
        "prompt": record.prompt[-SHOWN_CHARS:],
        "reference": " or ".join(record.references),
        "completion": record.completion[-SHOWN_CHARS:],
        "status": record.status,
        "extracted": record.extracted,
        "detail": record.detail,
    }


def describe(audit: Audit) -> list[str]:
    """The findings as lines for the terminal, ranked, each with an example."""
    lines = [audit.conclusion]
    for finding, entry in zip(audit.findings, audit.to_json()["findings"], strict=True):
        mark = "ABOVE" if finding.above_line else "below"
        lines.append(f"{mark} {finding.severity:6.2f}  {finding.check}: {finding.conclusion}")
        if finding.above_line:
            for example in entry["examples"]:
                text = " ".join(example["completion"].split())[-120:]
                where = f"step {example['step']}, group {example['group_index']}.{example['rollout']}"
                lines.append(f"              {where}: expected {example['reference'][:40]}, got … {text}")
    return lines
