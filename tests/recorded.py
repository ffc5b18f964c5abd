"""Runs as training leaves them, recorded by hand: for what reads run directories."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reasoner.journal import Journal, Use
from reasoner.metrics import plain, step_metrics
from reasoner.types import Group, Rollout, SamplingParams, Task, Verdict

SECONDS = {"rollout": 2.0, "verify": 0.0, "learn": 1.0, "sync": 0.5, "wait": 0.5, "total": 4.0}
PROMPT_TOKENS = 3


def rollout(task: Task, completion: str, right: bool, version: int = 0, truncated: bool = False) -> Rollout:
    """Bytes as tokens (the embedded model's are), behaviour logprob -0.5 each."""
    ids = np.array([50, 43, 50, *completion.encode()], np.int32)
    mask = np.arange(len(ids)) >= PROMPT_TOKENS
    answer = completion.rpartition("boxed{")[2].rstrip("}") if "boxed{" in completion else completion[-20:]
    verdict = Verdict.correct(answer) if right else Verdict.wrong(answer)
    logprobs = np.where(mask, -0.5, 0).astype(np.float32)
    versions = np.where(mask, version, -1).astype(np.int32)
    return Rollout(task, ids, mask, logprobs, versions, completion, not truncated, truncated, verdict)


def record(
    run_dir: Path,
    steps: Sequence[Sequence[Group]],
    evaluations: Mapping[int, Mapping] | None = None,
    config: str = 'model = "embedded"\n',
) -> Path:
    """A run whose step i (from 1) trained on `steps[i - 1]`; `evaluations` by step. The learner's logprobs
    are 0.1 below the sampler's, the advantages 0.5."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(f"steps = {len(steps) + 5}\n{config}")
    lines = [step_metrics(step=0, policy_version=0, seconds={}, evaluation=(evaluations or {}).get(0))]
    with Journal(run_dir) as journal:
        for step, groups in enumerate(steps, start=1):
            known = {"policy_version": step - 1, "evaluation": (evaluations or {}).get(step)}
            lines.append(step_metrics(step=step, seconds=SECONDS, groups=groups, **known))
            journal.append_groups(step, groups, SamplingParams(64))
            uses = [
                Use(g.index, i, n, 0.5, np.where(r.action_mask, r.behaviour_logprobs - 0.1, 0))
                for n, (g, i, r) in enumerate((g, i, r) for g in groups for i, r in enumerate(g.rollouts))
            ]
            journal.mark_used(step, uses)
            journal.compact(step)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(plain(line)) + "\n" for line in lines))
    return run_dir
