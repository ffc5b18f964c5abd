"""Signs that a run is going wrong, said while it can still be stopped: what was seen, what to try.

Every alarm is a pure function of the steps' metrics (lines of metrics.jsonl) and compares means over windows
of steps, so that a noisy step raises none; only skipped updates are counted. Where the mix of tasks changes
(an adaptive curriculum, retired tasks), the rates of steps are not comparable: those of the held-out
evaluations, whose tasks stay the same, take their place. `Alarms` remembers which are on: each is said once,
and again only after it was off in between. `Unjudged` looks at verdicts instead. Left out: stopping a run by
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reasoner.types import Group, Verdict

Entry = Mapping[str, Any]  # a line of metrics.jsonl

WINDOW = 10  # steps that are averaged
FALL = 0.2  # of the pass rate, from its best average to the latest
ENTROPY_FALL = 0.1  # of the entropy it began with: less is a policy that hardly explores
ENTROPY_RISE = 2.0  # times the entropy it began with: more is a policy that forgets
SOLVED = 0.8  # pass rate from which a low entropy is what success looks like
TRUNCATED_RISE = 0.15  # of the truncated share, since it was lowest
REWARD_RISE = 0.15  # of the mean reward, since the best evaluation
SKIPPED = 3  # steps in a row with skipped updates: once or twice is what skipping is for
SAME_ACCURACY = 0.02  # of held-out pass@1: less is no gain
#: What an evaluation calls the rates of a step.
HELD_OUT = {
    "pass_rate": "pass@1",
    "truncated_rate": "truncated_rate",
    "response_tokens_mean": "response_tokens_mean",
}


class Alarms:
    """The alarms of one run; `entries` are the steps it has behind it (on resume)."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self._entries = list(entries)
        self._on = set(self._ringing())

    def watch(self, entry: Entry) -> list[str]:
        """Takes in a step, or the last one anew, completed; the messages of the alarms that it sets off."""
        if self._entries and self._entries[-1]["step"] == entry["step"]:
            self._entries.pop()
        self._entries.append(entry)
        ringing = self._ringing()
        new = [message for name, message in ringing.items() if name not in self._on]
        self._on = set(ringing)
        return new

    def _ringing(self) -> dict[str, str]:
        messages = {alarm.__name__: alarm(self._entries) for alarm in ALARMS}
        return {name: message for name, message in messages.items() if message is not None}


class Unjudged:
    """What a verifier could not judge, said when it first happens; the same kind again is only counted."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def watch(self, groups: Iterable[Group]) -> list[str]:
        """The messages that these verified groups give rise to: at most one a kind of failure."""
        verdicts = [r.verdict for group in groups for r in group.rollouts if r.verdict]
        failed = [v for v in verdicts if v.status in ("error", "bad_reference")]
        first: dict[tuple[str, str], Verdict] = {}
        for v in failed:
            first.setdefault((v.status, v.detail.partition(": ")[0]), v)
        new = [v for kind, v in first.items() if kind not in self._said]
        self._said.update(first)
        return [
            f"{len(failed)} of {len(verdicts)} rollouts could not be judged and are left out: {v.status}: "
            f"{v.detail}. Further ones of this kind are only counted (unscored, in the step's line)"
            for v in new
        ]


def collapse(entries: Sequence[Entry]) -> str | None:
    """The mean pass rate of the last `WINDOW` steps lies `FALL` or more below the best such mean before."""
    windows = _window_means(entries, "pass_rate")
    if windows is None:
        return None
    (means,) = windows
    if means.max() - means[-1] < FALL:
        return None
    return (
        f"{_rate_name(entries)} fell from {means.max():.2f} to {means[-1]:.2f} (means of {WINDOW} steps): "
        "the policy may be collapsing. Stop with Ctrl-C and try a lower learner.lr or learner.grad_clip, or "
        "more groups a step; checkpoints/best holds the best weights that were evaluated and saved"
    )


def entropy_collapse(entries: Sequence[Entry]) -> str | None:
    """Entropy below `ENTROPY_FALL` of what it began with, while the pass rate is not `SOLVED` and no longer
    rises: groups become equal, and nothing is left to learn from."""
    windows = _window_means(entries, "entropy", "pass_rate")
    if windows is None:
        return None
    entropy, passed = windows
    if entropy[-1] >= ENTROPY_FALL * entropy[0]:
        return None
    if passed[-1] >= SOLVED or passed[-1] > _before(passed):
        return None
    return (
        f"entropy fell from {entropy[0]:.3f} to {entropy[-1]:.3f} nats a token while "
        f"{_rate_name(entries)} stays at {passed[-1]:.2f}: the policy has stopped exploring. Try a lower "
        "learner.lr, a higher learner.ratio_cap or upper learner.clip, larger groups, or a small "
        "learner.kl_coef"
    )


def entropy_explosion(entries: Sequence[Entry]) -> str | None:
    """Entropy above `ENTROPY_RISE` times what it began with, while the pass rate is below what it was."""
    windows = _window_means(entries, "entropy", "pass_rate")
    if windows is None:
        return None
    entropy, passed = windows
    if entropy[-1] <= ENTROPY_RISE * entropy[0] or passed[-1] >= _before(passed):
        return None
    return (
        f"entropy rose from {entropy[0]:.3f} to {entropy[-1]:.3f} nats a token while "
        f"{_rate_name(entries)} fell to {passed[-1]:.2f}: the policy is losing what it knew. Try a lower "
        "learner.lr or a small learner.kl_coef, and look at kl_behaviour and ess: a wrong correction shows "
        "there first"
    )


def length_runaway(entries: Sequence[Entry]) -> str | None:
    """Responses grow into the token budget (`TRUNCATED_RISE` more are cut off than at the best of times)
    without a higher pass rate than at that time."""
    windows = _window_means(entries, "response_tokens_mean", "truncated_rate", "pass_rate")
    if windows is None:
        return None
    lengths, truncated, passed = windows
    best = int(truncated.argmin())
    if truncated[-1] - truncated[best] < TRUNCATED_RISE or lengths[-1] <= lengths[best]:
        return None
    if passed[-1] > passed[best]:
        return None
    return (
        f"responses grew from {lengths[best]:.0f} to {lengths[-1]:.0f} tokens, {truncated[-1]:.0%} are cut "
        f"off, and {_rate_name(entries)} did not rise ({passed[best]:.2f} to {passed[-1]:.2f}): length runs "
        "away. Try learner.aggregation prompt or constant, a larger rollout.max_tokens, or see "
        "learner.mask_truncated: with it on, nothing holds the length back"
    )


def reward_without_accuracy(entries: Sequence[Entry]) -> str | None:
    """From the best held-out evaluation to the latest one the mean reward rose by `REWARD_RISE`, held-out
    pass@1 did not. The best is the first that none after it exceeds by `SAME_ACCURACY`."""
    evaluations = [
        (i, rate) for i, e in enumerate(entries) if (rate := _held_out(e).get("pass@1")) is not None
    ]
    if not evaluations:
        return None
    best, latest = evaluations[0], evaluations[-1]
    for evaluation in evaluations:
        if evaluation[1] - best[1] >= SAME_ACCURACY:
            best = evaluation
    then, now = _rewards(entries[best[0] :])[:WINDOW], _rewards(entries[: latest[0] + 1])[-WINDOW:]
    if len(then) < WINDOW or len(now) < WINDOW or np.mean(now) - np.mean(then) < REWARD_RISE:
        return None
    return (
        f"the reward rose from {np.mean(then):.2f} to {np.mean(now):.2f}, but held-out pass@1 did not "
        f"({best[1]:.2f} to {latest[1]:.2f}): the policy may be exploiting the verifier or learning "
        "the tasks by heart. Read the chains that are rewarded (reasoner report), audit the verifier "
        "(reasoner audit), and train on more tasks"
    )


def skipped_updates(entries: Sequence[Entry]) -> str | None:
    """Each of the last `SKIPPED` steps left optimizer steps out, since loss or gradient was not finite."""
    counts = [e["skipped_updates"] for e in entries if e.get("skipped_updates") is not None]
    if len(counts) <= SKIPPED or np.any(np.diff(counts[-1 - SKIPPED :]) <= 0):
        return None
    return (
        f"each of the last {SKIPPED} steps skipped updates, because loss or gradient was not finite: little "
        "or nothing is learned. Look at ratio_max, logprob_diff_max and the rewards of these steps; go back "
        "to a checkpoint with a lower learner.lr, or use learner.dtype float32"
    )


ALARMS = (
    collapse,
    entropy_collapse,
    entropy_explosion,
    length_runaway,
    reward_without_accuracy,
    skipped_updates,
)


def _window_means(entries: Sequence[Entry], *keys: str) -> np.ndarray | None:
    """(keys, windows) means over every `WINDOW` consecutive ones of the steps that have all the keys; None
    below two windows of them."""
    entries = _comparable(entries)
    steps = [[e[key] for key in keys] for e in entries if all(e.get(key) is not None for key in keys)]
    if len(steps) < 2 * WINDOW:
        return None
    return np.array([np.convolve(s, np.ones(WINDOW) / WINDOW, mode="valid") for s in np.transpose(steps)])


def _before(means: np.ndarray) -> float:
    """The window that ended where the last one begins."""
    return float(means[-1 - WINDOW])


def _mix_changes(entries: Sequence[Entry]) -> bool:
    """Whether the tasks of later steps are other ones than those of earlier steps, by themselves."""
    retired = {e["retired_prompts"] for e in entries if e.get("retired_prompts") is not None}
    return len(retired) > 1 or any(e.get("curriculum") for e in entries)


def _comparable(entries: Sequence[Entry]) -> Sequence[Entry]:
    """The steps; where the mix of tasks changes, with held-out values, linear between the evaluations, in
    place of those of the steps' own tasks. Outside of the evaluations nothing is known."""
    if not _mix_changes(entries):
        return entries
    found = [dict(entry) for entry in entries]
    for key, held_out in HELD_OUT.items():
        known = {i: v for i, e in enumerate(entries) if (v := _held_out(e).get(held_out)) is not None}
        first, last = min(known, default=0), max(known, default=-1)
        values = np.interp(range(first, last + 1), list(known), list(known.values())) if known else []
        for i, entry in enumerate(found):
            entry[key] = values[i - first] if first <= i <= last else None
    return found


def _rate_name(entries: Sequence[Entry]) -> str:
    return "held-out pass@1" if _mix_changes(entries) else "the pass rate"


def _held_out(entry: Entry) -> Entry:
    return entry.get("eval", {}).get("held_out", {})


def _rewards(entries: Sequence[Entry]) -> list[float]:
    return [e["reward_mean"] for e in entries if e.get("reward_mean") is not None]
