"""Alarms: each on a run that shows it and silent on runs that only look like it; said once."""

from __future__ import annotations

from dataclasses import replace

import pytest
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
    rows = zip(*series.values(), strict=True)
    return [{"step": i} | dict(zip(series, values, strict=True)) for i, values in enumerate(rows)]


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


def test_a_reward_that_rises_after_a_first_gain_in_accuracy():
    """Both are compared with what they were at the best evaluation, not with the beginning."""
    reward = [0.2] * 15 + [0.4] * 15 + [0.8] * 30
    entries = steps(step=list(range(60)), reward_mean=reward)
    held_out = {0: 0.25, 15: 0.5, 30: 0.5, 45: 0.51}
    said = {}
    for step, entry in enumerate(entries):
        if step in held_out:
            entry["eval"] = {"held_out": {"pass@1": held_out[step]}}
        said[step] = reward_without_accuracy(entries[: step + 1])
    assert [step for step, message in said.items() if message] == list(range(45, 60)), "once it was evaluated"
    assert "from 0.40 to 0.80" in said[45] and "0.50 to 0.51" in said[45]
    entries.append({"reward_mean": 0.8, "eval": {"held_out": {"pass@1": 0.55}}})
    assert reward_without_accuracy(entries) is None, "the accuracy followed"
    entries[-1]["eval"]["held_out"]["pass@1"] = 0.3
    assert "0.50 to 0.30" in reward_without_accuracy(entries)


HARDER = {
    "curriculum": [{"add/1": {"share": 1.0}}] * 12 + [{"add/4": {"share": 1.0}}] * 34,
    "retired_prompts": [0] * 12 + list(range(1, 35)),
}


def harder_tasks(mix, **series):
    """46 steps whose pass rate falls from 0.85 to 0.55 with harder tasks, with longer answers; `series` holds
    the entropy and what was evaluated at steps 0, 15, 30 and 45."""
    run = {"pass_rate": (0.85, 0.55), "response_tokens_mean": (60, 120), "truncated_rate": (0.0, 0.4)}
    run |= {key: series.pop(key) for key in ("entropy",) if key in series}
    entries = steps(**{k: [a] * 12 + [b] * 34 for k, (a, b) in run.items()}, **{mix: HARDER[mix]})
    for entry, held_out in zip(entries[::15], steps(**series), strict=True):
        entry["eval"] = {"held_out": held_out}
    return entries


@pytest.mark.parametrize("mix", HARDER)
def test_harder_tasks_are_no_collapse_but_a_fall_of_held_out_accuracy_is(mix):
    assert collapse(harder_tasks(mix, **{"pass@1": [0.3, 0.5, 0.6, 0.6]})) is None
    falling = harder_tasks(mix, **{"pass@1": [0.8, 0.8, 0.4, 0.4]})
    assert "held-out pass@1 fell from 0.80 to 0.40" in collapse(falling)
    assert collapse(falling + steps(pass_rate=[0.9] * 20)) is not None, "until it is evaluated again"
    unevaluated = [{key: e[key] for key in ("pass_rate", mix)} for e in falling]
    assert collapse(unevaluated) is None, "nothing to compare"
    same_tasks = [{**e, "curriculum": None, "retired_prompts": 3} for e in unevaluated]
    assert "the pass rate fell from 0.85 to 0.55" in collapse(same_tasks)


@pytest.mark.parametrize("mix", HARDER)
def test_entropy_and_length_of_harder_tasks_are_judged_by_held_out_tasks(mix):
    def evaluated(*rates, entropy=(0.4, 1.0), tokens=(60,) * 4, truncated=(0.0,) * 4):
        held_out = {"pass@1": rates, "response_tokens_mean": tokens, "truncated_rate": truncated}
        return harder_tasks(mix, entropy=entropy, **held_out)

    assert entropy_explosion(evaluated(0.3, 0.5, 0.6, 0.6)) is None
    assert "held-out pass@1 fell to 0.4" in entropy_explosion(evaluated(0.6, 0.6, 0.6, 0.4))
    rising = evaluated(0.3, 0.4, 0.5, 0.6, entropy=(0.4, 0.02))
    assert entropy_collapse(rising) is None
    assert entropy_collapse(rising + steps(entropy=[0.02] * 30)) is None, "rarely evaluated is not flat"
    assert "held-out pass@1 stays at 0.50" in entropy_collapse(evaluated(*[0.5] * 4, entropy=(0.4, 0.02)))
    assert length_runaway(evaluated(*[0.5] * 4)) is None, "answers to the same tasks are no longer"
    longer = evaluated(*[0.5] * 4, tokens=(60, 60, 120, 120), truncated=(0.0, 0.0, 0.4, 0.4))
    assert "from 60 to 120 tokens, 40% are cut off" in length_runaway(longer)


def test_an_alarm_is_said_once_and_again_after_a_recovery():
    entries = steps(pass_rate=[0.9] * 30 + [0.45] * 10 + [0.9] * 10 + [0.5] * 10)
    alarms = Alarms(entries[:30])
    said = [len(alarms.watch(entry)) for entry in entries[30:]]
    assert said[:10] == [0] * 4 + [1] + [0] * 5
    assert said[10:20] == [0] * 10
    assert sum(said[20:]) == 1


def test_what_rang_before_a_resume_is_not_said_again():
    entries = steps(pass_rate=[0.9] * 30 + [0.5] * 11)
    assert Alarms(entries[:-1]).watch(entries[-1]) == []


def test_a_step_whose_evaluation_came_late_is_the_same_step():
    entries = steps(pass_rate=[0.9] * 30 + [0.4] * 10)
    alarms = Alarms(entries[:-6])
    assert alarms.watch(entries[-6]) and not alarms.watch(entries[-6] | {"eval": {}})


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
