"""Alarms: each on a run that shows it and silent on runs that only look like it; said once."""

from __future__ import annotations

from dataclasses import replace

from recorded import rollout

from reasoner.alarms import (
    Alarms,
    Unjudged,
    collapse,
    entropy_collapse,
    entropy_explosion,
    length_runaway,
    reward_without_accuracy,
    skipped_updates,
)
from reasoner.types import Group, Task, Verdict


def steps(**series):
    """Entries of a run from lists of equal length."""
    return [dict(zip(series, values, strict=True)) for values in zip(*series.values(), strict=True)]


def ramp(start, stop, n=20):
    """Ten steps at the start, n - 20 between, ten at the end."""
    between = [start + (stop - start) * (i + 1) / (n - 19) for i in range(n - 20)]
    return [start] * 10 + between + [stop] * 10


def test_a_rising_or_wandering_pass_rate_is_no_collapse():
    assert collapse(steps(pass_rate=[i / 100 for i in range(100)])) is None
    assert collapse(steps(pass_rate=[0.9, 0.75] * 50)) is None
    assert collapse(steps(pass_rate=[0.9] * 5 + [0.0] * 5)) is None, "too short to tell"


def test_a_fall_is_said_with_both_numbers():
    message = collapse(steps(pass_rate=[0.9] * 30 + [None] + [0.5] * 10))
    assert message is not None and "from 0.90 to 0.50" in message
    assert collapse(steps(pass_rate=[0.9] * 30 + [0.71] * 10)) is None


def test_low_entropy_is_an_alarm_only_without_success():
    falling = ramp(0.4, 0.01, 30)
    message = entropy_collapse(steps(entropy=falling, pass_rate=[0.4] * 30))
    assert message is not None and "from 0.400 to 0.010" in message and "0.40" in message
    assert entropy_collapse(steps(entropy=falling, pass_rate=[0.95] * 30)) is None, "solved"
    assert entropy_collapse(steps(entropy=falling, pass_rate=ramp(0.2, 0.6, 30))) is None, "still rising"
    assert entropy_collapse(steps(entropy=ramp(0.4, 0.05, 30), pass_rate=[0.4] * 30)) is None


def test_rising_entropy_is_an_alarm_when_the_pass_rate_falls():
    rising = ramp(0.4, 1.0)
    message = entropy_explosion(steps(entropy=rising, pass_rate=ramp(0.5, 0.4)))
    assert message is not None and "from 0.400 to 1.000" in message
    assert entropy_explosion(steps(entropy=rising, pass_rate=ramp(0.5, 0.6))) is None
    assert entropy_explosion(steps(entropy=ramp(0.4, 0.7), pass_rate=ramp(0.5, 0.4))) is None


def test_updates_that_are_skipped_step_after_step():
    assert skipped_updates(steps(skipped_updates=[0, 1, 1, 2, 3])) is None, "two in a row"
    message = skipped_updates(steps(skipped_updates=[0, None, 1, 3, 4]))
    assert message is not None and "each of the last 3 steps" in message
    assert skipped_updates(steps(skipped_updates=[1, 2, 3])) is None, "of the first one nothing is known"
    assert skipped_updates([]) is None


def test_length_that_only_fills_the_budget():
    run = {"response_tokens_mean": ramp(60, 120), "truncated_rate": ramp(0.05, 0.3)}
    message = length_runaway(steps(**run, pass_rate=ramp(0.5, 0.45)))
    assert message is not None and "from 60 to 120 tokens, 30% are cut off" in message
    assert length_runaway(steps(**run, pass_rate=ramp(0.5, 0.6))) is None, "length that pays"
    short = {"response_tokens_mean": ramp(60, 120), "truncated_rate": ramp(0.0, 0.1)}
    assert length_runaway(steps(**short, pass_rate=ramp(0.5, 0.45))) is None
    shorter = {"response_tokens_mean": ramp(120, 60), "truncated_rate": ramp(0.05, 0.3)}
    assert length_runaway(steps(**shorter, pass_rate=ramp(0.5, 0.45))) is None, "the budget was cut, say"


def test_reward_that_rises_where_accuracy_does_not():
    def run(first, last):
        entries = steps(reward_mean=ramp(0.3, 0.6))
        entries[0]["eval"] = {"held_out": {"pass@1": first}}
        entries[-1]["eval"] = {"held_out": {"pass@1": last}, "ood": {"pass@1": 0.0}}
        return entries

    message = reward_without_accuracy(run(0.30, 0.31))
    assert message is not None and "from 0.30 to 0.60" in message and "0.30 to 0.31" in message
    assert reward_without_accuracy(run(0.30, 0.40)) is None
    assert reward_without_accuracy(steps(reward_mean=ramp(0.3, 0.6))) is None, "never evaluated"


def test_an_alarm_is_said_once_and_again_after_a_recovery():
    alarms = Alarms(steps(pass_rate=[0.9] * 30))
    said = [alarms.watch({"pass_rate": 0.45}) for _ in range(10)]
    assert [len(messages) for messages in said] == [0] * 4 + [1] + [0] * 5
    for _ in range(10):
        assert alarms.watch({"pass_rate": 0.9}) == []
    assert sum(len(alarms.watch({"pass_rate": 0.5})) for _ in range(10)) == 1


def test_what_rang_before_a_resume_is_not_said_again():
    entries = steps(pass_rate=[0.9] * 30 + [0.5] * 10)
    assert Alarms(entries).watch({"pass_rate": 0.5}) == []


def test_what_cannot_be_judged_is_said_once_a_kind():
    task = Task("t", "2+2", "4")

    def group(*verdicts: Verdict) -> Group:
        return Group(task, tuple(replace(rollout(task, "4", True), verdict=v) for v in verdicts))

    right, wrong = Verdict.correct("4"), Verdict.wrong("5")
    down = Verdict.error("http://h/s: ConnectError: refused (4 attempts)")
    unjudged = Unjudged()
    assert unjudged.watch([group(right, wrong)]) == []
    (said,) = unjudged.watch([group(right, down), group(down, wrong)])
    assert said.startswith("2 of 4 rollouts could not be judged and are left out: error: http://h/s: Connect")
    assert unjudged.watch([group(down, Verdict.error("http://h/s: no answer within 3 s"))]) == []
    (other,) = unjudged.watch([group(down, Verdict.error("KeyError: 'x' (mine.py:3)"))])
    assert "2 of 2" in other and "KeyError: 'x' (mine.py:3)" in other
