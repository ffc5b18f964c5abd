"""Replays a run from its journal, without servers: every reward verified again, every update recomputed.

What is compared and what is allowed stands in `reasoner.recompute` and docs/replay.md. Left out: sampling.
A journal holds what was sampled; that the sampler would say the same again is not claimed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoner.config import Config, load_config
from reasoner.errors import UsageError
from reasoner.journal import read_step
from reasoner.metrics import read_metrics
from reasoner.model_source import resolve_model
from reasoner.rejudge import Judge, Rewards
from reasoner.rollout_files import groups_of
from reasoner.run import config_at, config_files

if TYPE_CHECKING:
    from reasoner.recompute import Recomputation

FORMAT_VERSION = 1  # of the JSON
SHOWN = 5  # disagreements

OnStep = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True)
class Replay:
    """What a replay found. `rewards` is None where the run's verifier has no name; `updates` is None where
    another verifier was asked for."""

    run: Path
    first_step: int
    last_step: int
    rewards: Rewards | None
    updates: Recomputation | None
    counterfactual: bool
    seconds: float

    @property
    def reproduced(self) -> bool:
        """Nothing diverged (with another verifier there is nothing that could)."""
        if self.counterfactual:
            return True
        same_rewards = self.rewards is None or not self.rewards.contradicted
        return same_rewards and (self.updates is None or self.updates.first is None)

    def to_json(self) -> dict[str, Any]:
        u = self.updates
        return {
            "format": FORMAT_VERSION,
            "run": str(self.run),
            "steps": [self.first_step, self.last_step],
            "reproduced": None if self.counterfactual else self.reproduced,
            "rewards": self.rewards.to_json() if self.rewards else None,
            "updates": None
            if u is None
            else {
                "updates": u.updates,
                "steps_without_update": u.without_update,
                "action_tokens": u.tokens,
                "fingerprint_differences": u.fingerprint_differences,
                "bit_for_bit": u.exact,
                "identical": u.identical,
                "largest_difference": {name: _finite(value) for name, value in u.worst.items()},
                "checkpoints": {str(step): text for step, text in u.checkpoints.items()},
                "first_divergence": None
                if u.first is None
                else {**asdict(u.first), "difference": _finite(u.first.difference)},
            },
            "seconds": self.seconds,
        }


def replay(
    run_dir: str | Path,
    *,
    start: int = 0,
    stop: int | None = None,
    verifier: str | Callable[..., Any] | None = None,
    on_step: OnStep = lambda done, total: None,
) -> Replay:
    """Replays the steps after `start` up to `stop` (None: the last recorded). `start` > 0 begins from that
    checkpoint. With `verifier` only the rewards are computed, by it.

    Raises UsageError when the run, a step, a checkpoint or the verifier cannot be used."""
    begun = time.perf_counter()
    run = Path(run_dir)
    metrics = {line["step"]: line for line in read_metrics(run)}
    last = _last_step(run, list(metrics), start, stop)
    configs = [(until, load_config(file)) for until, file in config_files(run)]
    updates = None
    if verifier is None:
        from reasoner.recompute import Recomputation

        base = resolve_model(configs[0][1].model, runs_dir=configs[0][1].runs_dir)
        updates = Recomputation(run, configs, metrics, start, base.path)
    try:
        with Judge(verifier) as judge:
            for step in range(start + 1, last + 1):
                _replay_step(run, step, metrics[step], configs, judge, updates)
                on_step(step - start, last - start)
            if stop is None:
                _judge_unused(run, configs, judge)
    finally:
        if updates is not None:
            updates.close()
    rewards = judge.rewards if judge.rewards.verifiers else None
    seconds = time.perf_counter() - begun
    return Replay(run, start + 1, last, rewards, updates, verifier is not None, seconds)


def _last_step(run: Path, recorded: Sequence[int], start: int, stop: int | None) -> int:
    last = max(recorded, default=0)
    if last < 1:
        raise UsageError(f"{run} has no recorded step: nothing to replay")
    if stop is not None and not 1 <= stop <= last:
        raise UsageError(f"--to {stop}: {run} has the steps 1 to {last}")
    end = last if stop is None else stop
    if not 0 <= start < end:
        raise UsageError(f"--from {start}: nothing is left to replay up to step {end}")
    if missing := set(range(start + 1, end + 1)) - set(recorded):
        raise UsageError(f"{run}/metrics.jsonl has no line of step {min(missing)}: it is incomplete")
    return end


def _replay_step(
    run: Path,
    step: int,
    line: dict[str, Any],
    configs: Sequence[tuple[int | None, Config]],
    judge: Judge,
    updates: Recomputation | None,
) -> None:
    """Verifies in other processes while this one recomputes the update."""
    table = read_step(run, step)
    if table.num_rows != line["rollouts"]:
        raise UsageError(
            f"the journal of {run} has {table.num_rows} of the {line['rollouts']} rollouts of step {step}: "
            "it is incomplete"
        )
    groups = groups_of(table)
    config = config_at(configs, step)
    futures = judge.submit(groups, config) if judge.can_judge(config) else None
    if updates is not None:
        updates.step(step, table, groups)
    if futures is not None:
        judge.collect(step, groups, futures, _other_verifiers(configs, config))


def _judge_unused(run: Path, configs: Sequence[tuple[int | None, Config]], judge: Judge) -> None:
    groups, config = groups_of(read_step(run, None)), configs[-1][1]
    if groups and judge.can_judge(config):
        judge.collect(None, groups, judge.submit(groups, config), _other_verifiers(configs, config))


def _other_verifiers(configs: Sequence[tuple[int | None, Config]], config: Config) -> list[Config]:
    """The configurations, before the last equal to `config`, that had another verifier, the latest first."""
    latest_first = [c for _, c in reversed(configs)]
    before = latest_first[latest_first.index(config) + 1 :]
    return [c for c in before if c.verifier != config.verifier]


def describe(result: Replay) -> Iterator[str]:
    """The report, line by line."""
    steps = f"steps {result.first_step} to {result.last_step}"
    yield f"{result.run}: {steps}, {result.seconds:.0f} s"
    if result.counterfactual:
        assert result.rewards is not None
        yield from _describe_other(result.rewards)
        return
    yield from _describe_rewards(result.rewards)
    if result.updates is not None:
        yield from _describe_updates(result.updates)
    what = "reproduced" if result.rewards else "updates reproduced"
    if not result.reproduced:
        yield "NOT reproduced"
    elif result.updates is not None and _all_identical(result.updates):
        yield f"{what}, bit for bit"
    else:
        yield f"{what}, within the tolerance"


def _describe_rewards(rewards: Rewards | None) -> Iterator[str]:
    if rewards is None:
        yield "rewards       not verified again: the verifier was a Python object (name one with --verifier)"
        return
    wrong = len(rewards.contradicted)
    verdict = f"{wrong} DIFFER" if wrong else "all the same"
    yield f"rewards       {rewards.checked} verified again by {', '.join(rewards.verifiers)}: {verdict}"
    without = len(rewards.disagreements) - wrong
    if without:
        yield f"              {without} had no verdict (error) and have one now"
    changed = sum(n for (old, new), n in rewards.confusion.items() if old != new)
    if changed > wrong + without:
        yield f"              {changed - wrong - without} have another status and the same reward"
    yield from _shown(rewards)


def _shown(rewards: Rewards) -> Iterator[str]:
    shown = sorted(rewards.disagreements, key=lambda d: d.recorded.status == "error")  # real ones first
    for d in shown[:SHOWN]:
        where = f"step {d.step}, group {d.group_index}, rollout {d.rollout} ({d.task_id})"
        old, new = d.recorded, d.found
        verdicts = f"{old.status} {old.reward} → {new.status} {new.reward}"
        yield f"              {where}: {verdicts}" + (f" ({new.detail})" if new.detail else "")
    if len(rewards.disagreements) > SHOWN:
        yield f"              … and {len(rewards.disagreements) - SHOWN} more (--json has them all)"


def _describe_updates(u: Recomputation) -> Iterator[str]:
    if u.exact:
        yield "fingerprint   the run's: bits must agree"
    else:
        said = ", ".join(
            f"{name} {_short(old)} → {_short(new)}" for name, (old, new) in u.fingerprint_differences.items()
        )
        yield f"fingerprint   differs, so a tolerance holds: {said or 'a GPU adds in no fixed order'}"
    none = f", {u.without_update} steps had no signal" if u.without_update else ""
    yield f"updates       {u.updates} recomputed, {u.tokens} action tokens{none}"
    names = {"advantage": "advantages", "learner_logprobs": "logprobs", "grad_norm": "grad norms"}
    for name, label in names.items():
        found = "identical" if u.identical[name] else f"off by up to {u.worst[name]:.2g}"
        yield f"{label:13} {found}"
    same = [str(step) for step, text in u.checkpoints.items() if text == "identical"]
    if same:
        yield f"checkpoints   {', '.join(same)}: identical weights (sha256)"
    for step, text in u.checkpoints.items():
        if text != "identical":
            yield f"checkpoint    {step}: {text}"
    if u.first is not None:
        yield f"DIVERGED      first at {u.first}"
        if u.first.step == 0:
            yield "              step 0 is the base model: it is not the one that the run began with"


def _describe_other(rewards: Rewards) -> Iterator[str]:
    yield f"{rewards.checked} rollouts by {', '.join(rewards.verifiers)}, recorded → found:"
    for (old, new), n in sorted(rewards.confusion.items()):
        yield f"  {old:>13} → {new:13} {n:8}" + ("" if old == new else "  *")
    yield f"  another reward: {len(rewards.disagreements)} ({_share(rewards):.2%})"
    yield from _shown(rewards)
    yield "  step   recorded mean   found mean"
    for step in rewards.steps:
        name = "–" if step["step"] is None else step["step"]
        yield f"  {name:>4}   {_number(step['recorded_mean']):>13}   {_number(step['found_mean']):>10}"


def _share(rewards: Rewards) -> float:
    return len(rewards.disagreements) / rewards.checked if rewards.checked else 0.0


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _short(value: Any) -> str:
    """Hashes are told apart by their beginning."""
    text = str(value)
    return f"{text[:8]}…" if len(text) == 64 else text


def _all_identical(u: Recomputation) -> bool:
    return all(u.identical.values()) and all(text == "identical" for text in u.checkpoints.values())


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
