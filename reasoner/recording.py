"""What a step leaves behind: its line of metrics and the fate of each of its groups in the journal."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasoner.flops import FlopCounter
from reasoner.journal import Journal, Use
from reasoner.metrics import step_metrics
from reasoner.types import Group, Rollout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """What an update used and measured."""

    metrics: Mapping[str, float]
    uses: Sequence[Use]
    lengths: Sequence[int]  # tokens of the trained rollouts


@dataclass(frozen=True)
class StepOutcome:
    """All there is to say about one step."""

    version: int  # that was sampled from and updated
    kept: Sequence[Group]
    filtered: Sequence[Group]  # replaced ones among them
    stale: Sequence[Group]
    update: Update | None  # None: no group carried a signal
    sync: Any  # SyncReport

    @property
    def all_groups(self) -> list[Group]:
        return [*self.kept, *self.filtered, *self.stale]

    def sample(self) -> Rollout | None:
        """One chain of thought to show: the longest one that is right, else the longest."""
        rollouts = [r for g in self.all_groups for r in g.rollouts]
        right = [r for r in rollouts if r.verdict and r.verdict.is_correct]
        return max(right or rollouts, key=lambda r: r.num_action_tokens, default=None)


class Recorder:
    def __init__(self, journal: Journal, flops: FlopCounter, *, asynchronous: bool) -> None:
        self._journal = journal
        self._asynchronous = asynchronous
        self._flops = flops

    def metrics_of(
        self,
        step: int,
        out: StepOutcome,
        seconds: Mapping[str, float],
        evaluation: Mapping[str, Any] | None,
        elapsed_s: float,
    ) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        lengths = [len(r.token_ids) for g in out.all_groups for r in g.rollouts]
        sampled = sum(r.num_action_tokens for g in out.all_groups for r in g.rollouts)
        trained = out.update.lengths if out.update else []
        learner = out.update.metrics if out.update else {}
        sampling_s = seconds["total"] if self._asynchronous else seconds["rollout"]
        return step_metrics(
            step=step,
            policy_version=out.version,
            seconds=seconds,
            groups=out.all_groups,
            evaluation=evaluation,
            **learner,
            filtered_groups=len(out.filtered),
            dropped_stale=len(out.stale),
            dropped_tokens_mean=_mean_tokens(out.stale),
            learner_tokens_per_s=sum(trained) / seconds["learn"] if trained and seconds["learn"] else None,
            sampler_tokens_per_s=sampled / sampling_s if sampling_s else None,
            train_flops=learner.get("flops", 0.0),
            sample_flops=self._flops.forward(lengths),
            sync_seconds=out.sync.seconds,
            sync_bytes=out.sync.bytes,
            probe_max_abs_diff=out.sync.probe_max_abs_diff,
            elapsed_s=elapsed_s,
        )

    def journal_fates(self, step: int, out: StepOutcome) -> None:
        """Which rollouts the step used and why it did not use the others; then the step becomes Parquet."""
        uses = out.update.uses if out.update else []
        self._journal.mark_used(step, uses)
        used = {u.group_index for u in uses}
        unused = [g.index for g in [*out.kept, *out.filtered] if g.index not in used]
        self._journal.mark_dropped(step, unused, "filtered")
        self._journal.mark_dropped(step, [g.index for g in out.stale], "stale")
        kept = _mean_tokens(out.kept)
        for group in out.stale:
            tokens = [r.num_action_tokens for r in group.rollouts]
            log.warning(
                "group %d is too old and dropped; its rollouts have %s tokens, the kept ones %s on average",
                *(group.index, tokens, round(kept, 1) if kept is not None else "none"),
            )
        self._journal.compact(step)


def _mean_tokens(groups: Sequence[Group]) -> float | None:
    lengths = [r.num_action_tokens for g in groups for r in g.rollouts]
    return sum(lengths) / len(lengths) if lengths else None
