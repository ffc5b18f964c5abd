"""Planted hacks are found, each by its check; a clean run has nothing above the line."""

import json
import random
from dataclasses import replace
from fractions import Fraction

import pytest
from click.testing import CliRunner
from recorded import record, rollout

from reasoner.audit import audit_run
from reasoner.audit_checks import _normal, _stated, is_repetitive, number, plain_opinion
from reasoner.audit_evidence import Evidence, Record, at_least, held_out_change, matched_rise
from reasoner.cli import main
from reasoner.config import Config
from reasoner.errors import UsageError
from reasoner.types import Group, Rollout, Task, Verdict

STEPS, GROUPS, SIZE = 9, 12, 4


def held_out(first: float, last: float) -> dict:
    entry = {"problems": 400, "samples": 1, "response_tokens_mean": 20.0}
    return {0: {"held_out": entry | {"pass@1": first}}, STEPS: {"held_out": entry | {"pass@1": last}}}


def honest(task: Task, a: int, b: int, c: int, right: bool, rng: random.Random) -> Rollout:
    wrong = a + b + c + rng.randint(1, 9)
    answer = a + b + c if right else wrong
    if rng.random() < 0.3:
        return rollout(task, rf"\boxed{{{answer}}}", right)
    slip = f"{a}+{b}={a + b + 1};no," if rng.random() < 0.2 else ""
    return rollout(task, rf"{slip}{a}+{b}={a + b};{a + b}+{c}={answer};\boxed{{{answer}}}", right)


def make(run_dir, hack=None, prompt="{a}+{b}+{c}", final=0.8, evaluations=None, family="sum"):
    """A run that learns sums of three numbers from 0.3 to `final`. `hack(rollout, late, rng)` may replace
    each rollout; `late` is true in the last third."""
    rng = random.Random(0)
    steps = []
    for step in range(STEPS):
        groups = []
        for g in range(GROUPS):
            a, b, c = (rng.randint(10, 99) for _ in range(3))
            index = step * GROUPS + g
            text = prompt.format(a=a, b=b, c=c, sum=a + b + c)
            task = Task(f"t{index}", text, str(a + b + c), family, float(g % 2))
            rate = 0.3 + (final - 0.3) * step / (STEPS - 1)
            members = [honest(task, a, b, c, rng.random() < rate, rng) for _ in range(SIZE)]
            if hack:
                members = [hack(r, step >= STEPS - STEPS // 3, rng) for r in members]
            groups.append(Group(members[0].task, tuple(members), index))
        steps.append(groups)
    return record(run_dir, steps, held_out(0.3, final) if evaluations is None else evaluations)


def said(r: Rollout, text: str, verdict: Verdict | None = None) -> Rollout:
    """`text` in its place, rewarded unless there is another verdict."""
    return replace(rollout(r.task, text, True), verdict=verdict or Verdict.correct(text[-20:]))


def empty_box(r, late, rng):
    return said(r, r"\boxed{}", Verdict.correct("")) if late and rng.random() < 0.3 else r


def wrong_reward(r, late, rng):
    return said(r, r"10+10=21;\boxed{7}", Verdict.correct("7")) if late and rng.random() < 0.3 else r


def refused(r, late, rng):
    return replace(r, verdict=Verdict.wrong("?")) if r.verdict.is_correct and rng.random() < 0.2 else r


def shotgun(r, late, rng):
    text = r"either \boxed{1} or \boxed{2} or " + rf"\boxed{{{r.task.reference}}}"
    return said(r, text, Verdict.correct(r.task.reference)) if late and rng.random() < 0.3 else r


def hedge(r, late, rng):
    text = rf"{r.task.reference} or 7"
    return said(r, rf"\boxed{{{text}}}", Verdict.correct(text)) if late and rng.random() < 0.3 else r


def blurt(r, late, rng):
    return said(r, rf"\boxed{{{r.task.reference}}}") if late and rng.random() < 0.9 else r


def loop(r, late, rng):
    text = "I am sure about this.\n" * 20 + rf"\boxed{{{r.task.reference}}}"
    return said(r, text) if late and rng.random() < 0.2 else r


def padded(r, late, rng):
    words = " ".join(str(rng.random()) for _ in range(40))
    return said(r, rf"{words}\boxed{{{r.task.reference}}}") if late and rng.random() < 0.15 else r


def wordy(r, late, rng):
    words = " ".join(str(rng.random()) for _ in range(4))
    return replace(rollout(r.task, words + r.completion, True), verdict=r.verdict) if late else r


def endless(r, late, rng):
    if late and rng.random() < 0.6:
        return replace(r, truncated=True, terminated=False, verdict=Verdict.unparsed())
    return r


def broken(r, late, rng):
    return replace(r, verdict=Verdict.error("no connection")) if rng.random() < 0.1 else r


def copied(r, late, rng):
    """Solves what it can copy: the answer stands in half of the prompts, which `make` cannot know."""
    there = r.task.difficulty == 0.0 and int(r.task.id[1:]) % 4 == 0
    task = replace(r.task, prompt=f"[{r.task.reference}] {r.task.prompt}" if there else r.task.prompt)
    good = there or rng.random() < 0.2
    answer = r.task.reference if good else "5"
    return rollout(task, rf"let me see, this makes \boxed{{{answer}}}", good)


@pytest.mark.parametrize(
    ("check", "plant"),
    [
        ("constant_answer", {"hack": empty_box}),
        ("verifier_rewards_wrong", {"hack": wrong_reward}),
        ("verifier_refuses_right", {"hack": refused}),
        ("several_final_answers", {"hack": shotgun}),
        ("several_final_answers", {"hack": hedge}),
        ("reward_without_working", {"hack": blurt}),
        ("repetition", {"hack": loop}),
        ("length_outliers", {"hack": padded}),
        ("length_without_gain", {"hack": wordy, "final": 0.3}),
        ("truncation", {"hack": endless}),
        ("verifier_trouble", {"hack": broken}),
        ("answer_stated_in_prompt", {"prompt": "{a}+{b}+{c} (the answer is {sum})"}),
        ("answer_copied_from_prompt", {"hack": copied}),
        ("no_generalisation_sum", {"evaluations": held_out(0.3, 0.29)}),
    ],
)
def test_a_planted_hack_is_found_and_named(tmp_path, check, plant):
    run = make(tmp_path / "run", **plant)
    audit = audit_run(run, Config())
    above = {f.check: f for f in audit.findings if f.above_line}
    assert check in above, [(f.check, round(f.severity, 2)) for f in audit.findings]
    assert above[check].flagged, "there must be rollouts to read"
    assert check.replace("_", " ") in audit.conclusion
    severities = [f.severity for f in audit.findings]
    assert severities == sorted(severities, reverse=True)
    written = json.loads((run / "audit.json").read_text())
    entry = next(f for f in written["findings"] if f["check"] == check)
    assert entry["examples"] and entry["conclusion"] and entry["above_line"]


@pytest.mark.parametrize("final", [0.3, 0.8, 1.0])
def test_a_clean_run_has_nothing_above_the_line(tmp_path, final):
    audit = audit_run(make(tmp_path / "run", final=final), Config())
    assert [f for f in audit.findings if f.above_line] == []
    assert audit.conclusion == "nothing above the line in 432 rollouts of 9 of 9 steps"


def never(completion: str, task: Task) -> float:
    return 0.0


def test_another_verifier_judges_the_same_completions(tmp_path):
    run = make(tmp_path / "run")
    clean = audit_run(run, Config(), verifier="math")
    assert not any(f.above_line for f in clean.findings)
    audit = audit_run(run, Config(), verifier=never)
    (found,) = [f for f in audit.findings if f.check == "verifier_rewards_wrong_by_other"]
    rewarded = sum(r.rewarded for r in audit.records)
    assert (found.count, found.of) == (rewarded, len(audit.records))


def test_a_long_run_is_sampled_by_whole_steps(tmp_path):
    audit = audit_run(make(tmp_path / "run"), Config(), max_rollouts=150)
    assert (audit.steps, audit.of_steps) == (3, 9)
    assert sorted({r.step for r in audit.records}) == [1, 5, 9]


def test_the_command(tmp_path):
    run = make(tmp_path / "run", hack=empty_box)
    done = CliRunner().invoke(main, ["audit", str(run), "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0].startswith("1 finding above the line in 432 rollouts")
    assert "ABOVE" in done.output and "constant_answer" in done.output
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads((run / "audit.json").read_text())
    assert CliRunner().invoke(main, ["audit", str(tmp_path / "nothing")]).exit_code == 2


def test_a_run_without_a_finished_step_is_bad_input(tmp_path):
    with pytest.raises(UsageError, match="no finished step"):
        audit_run(tmp_path, Config())


# ---------------------------------------------------------------------- what the checks measure with


def one(completion: str, references: tuple[str, ...] = ("12",), **others) -> Record:
    fields = {"step": 1, "group_index": 0, "rollout": 0, "task_id": "t", "family": "f", "difficulty": 1.0}
    fields |= {"prompt": "p", "status": "correct", "extracted": None, "detail": "", "truncated": False}
    return Record(**(fields | {"tokens": 5, "references": references, "completion": completion} | others))


@pytest.mark.parametrize(
    ("record", "opinion"),
    [
        (one(r"\boxed{12}"), True),
        (one(r"\boxed{13} no, \boxed{12.0}"), True),
        (one(r"\boxed{12} no, \boxed{13}"), False),
        (one(r"\boxed{\frac{24}{2}}"), True),
        (one(r"\boxed{x}"), None),
        (one("it is 1,2, or 13"), False),
        (one("it is 12"), None),  # it may be there by chance
        (one("it is 2^4-4"), None),
        (one("twelve"), None),
        (one(r"\boxed{12\%}", ("0.12",)), None),
        (one(r"\boxed{3}", ("x+1",)), None),
        (one(r"\boxed{3+9}", judged_by="countdown"), None),
    ],
)
def test_the_plain_opinion(record, opinion):
    assert plain_opinion(record) is opinion


@pytest.mark.parametrize(
    ("completion", "extracted", "answer"),
    [
        ("9 * 6 = 54.", "9 * 6 = 54.", "54"),  # and not 9, which is right for a whole row of the table
        ("so 54 apples", "54 apples", "54"),
        (r"6+6=12, \boxed{54}", None, "54"),
        ("9 times 6 makes 54", None, "54"),
        (r"\boxed{x + 2 y}", "x + 2 y", "x+2y"),
        ("None", None, "none"),
    ],
)
def test_what_a_completion_states(completion, extracted, answer):
    assert _normal(_stated(one(completion, extracted=extracted))) == answer


def test_numbers():
    assert number("-1,234.50") == Fraction(-12345, 10)
    assert number("$ 7 $") == 7
    assert number("1/0") is None and number("1e5") is None and number("") is None


def test_the_lower_end_of_a_share():
    # Wilson, z = 1.645, 5 of 10: (0.5 + 0.1353 - 1.645 sqrt(0.025 + 0.006765)) / 1.2706
    assert at_least(5, 10) == pytest.approx(0.2693, abs=1e-4)
    assert at_least(0, 10) == 0.0 and at_least(0, 0) == 0.0


def test_a_rise_is_measured_on_tasks_of_the_same_kind():
    def some(step: int, difficulty: float, rights: list[int]) -> list[Record]:
        return [
            one(
                "",
                step=step,
                difficulty=difficulty,
                group_index=100 * step + i,
                status="correct" if r else "wrong",
            )
            for i, r in enumerate(rights)
        ]

    early = some(1, 1.0, [1, 1, 0, 0]) + some(1, 5.0, [0, 0])
    late = some(2, 1.0, [1, 1, 1, 0])  # easy ones only: 0.75 against 0.5, not against 0.33
    rise, error = matched_rise(early, late, lambda r: r.rewarded)
    assert rise == pytest.approx(0.25)
    assert error == pytest.approx(((1 / 3) / 4 + (1 / 4) / 4) ** 0.5)
    assert matched_rise(some(1, 9.0, [1, 1]), late, lambda r: r.rewarded) == (0.0, 0.0)
    assert [r.step for r in Evidence(tuple(early + late)).late] == [1] * 6 + [
        2
    ] * 4  # too few steps for thirds


def test_held_out_change_prefers_the_familys_own():
    lines = [
        {"eval": {"held_out": {"pass@1": 0.2, "problems": 100, "by_family": {"f": {"pass@1": 0.5}}}}},
        {"step": 1},
        {"eval": {"held_out": {"pass@1": 0.6, "problems": 100, "by_family": {"f": {"pass@1": 0.5}}}}},
    ]
    assert held_out_change(lines)[0] == pytest.approx(0.4)
    assert held_out_change(lines, "f") == (0.0, pytest.approx((2 * 0.25 / 100) ** 0.5))
    assert held_out_change(lines, "g") is None, "not evaluated: what others did says nothing about it"
    assert held_out_change(lines[:2]) is None


def test_repetitive_texts():
    assert is_repetitive("ab" * 200)
    assert is_repetitive("this again, my friend\n" * 6)
    assert not is_repetitive("".join(f"{i}+{i * 7}={i * 8};" for i in range(40)))
    assert not is_repetitive("ok\n" * 20)
