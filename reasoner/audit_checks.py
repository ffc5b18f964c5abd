r"""The checks of `reasoner audit`: pure functions from recorded rollouts to findings.

A check compares what it measured with a line of its own, and its severity is the ratio of the two: 1.0 is
the line. Shares are judged by the lower end of their 90 % interval (Wilson score, one side 95 %), so that a
few odd rollouts in a small run are no finding. "Early" and "late" are the first and last third of the steps;
where a rise is judged, it is over tasks of the same family and difficulty: a curriculum changes the tasks.

The checks know nothing of the verifier's code: what they share with it would be blind in the same place.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from reasoner.audit_evidence import (
    Evidence,
    Finding,
    Key,
    Record,
    at_least,
    held_out_change,
    matched_mean,
    matched_rise,
    stratified,
    tasks_of,
)

_BOX = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?!\w)")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_CUE = r"(?:answer|solution|result|reference|gold|label|target)s?\b[^\n]{0,24}?(?<![\w.])"
_WORKING_CHARACTERS = 8  # letters and digits beside the answer: fewer is no working
_FEW = 100  # rollouts: too few for a mean length
_COPY_CHARACTERS = 2  # shorter references stand in a prompt by chance


def number(text: str) -> Fraction | None:
    """The value of a plain number: integer, decimal, a/b or \\frac{a}{b}; None for everything else."""
    text = _FRACTION.sub(r"\1/\2", text.strip().strip("$ .").replace("−", "-").replace(",", ""))
    if not re.fullmatch(r"[-+]?\d{1,100}(?:\.\d{1,100}|/\d{1,100})?", text):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def plain_opinion(record: Record) -> bool | None:
    """Whether the answer is the reference, read in the plainest way: the last box as a number, or without a
    box, whether the reference's value stands anywhere in the completion. None where that decides nothing:
    no numeric reference, percentages, expressions, or a task with a verifier of its own."""
    values = {number(reference) for reference in record.references}
    if None in values or "%" in record.prompt + record.completion or record.judged_by not in (None, "math"):
        return None
    if boxes := _BOX.findall(record.completion):
        stated = number(boxes[-1])
        return None if stated is None else stated in values
    if re.search(r"[\\^!√]", record.completion) or not re.search(r"\d", record.completion):
        return None
    found = {number(text) for text in _NUMBER.findall(record.completion)}
    return False if not values & found and all(v and v.denominator == 1 for v in values) else None


def verifier_disagreement(evidence: Evidence) -> list[Finding]:
    """The run's verdicts against `plain_opinion`."""
    pairs = [
        (r, opinion)
        for r in evidence.records
        if r.status in ("correct", "wrong", "unparsed") and (opinion := plain_opinion(r)) is not None
    ]
    return disagreements(
        "a plain comparison of numbers", [r for r, _ in pairs], {r.key: opinion for r, opinion in pairs}
    )


def disagreements(judge: str, records: Sequence[Record], right: Mapping[Key, bool]) -> list[Finding]:
    """Where `judge` says something else than the run's verifier; line: 1 % of what both judged."""
    rewarded = [r for r in records if r.rewarded and not right[r.key]]
    refused = [r for r in records if not r.rewarded and right[r.key]]
    texts = (
        ("verifier_rewards_wrong", rewarded, f"rewarded answers are wrong by {judge}"),
        ("verifier_refuses_right", refused, f"answers without a reward are right by {judge}"),
    )
    return [
        _share(check, found, len(records), 0.01, f"{{count}} {text} ({{share}} of {len(records)} compared)")
        for check, found, text in texts
        if found
    ]


def reward_without_working(evidence: Evidence) -> list[Finding]:
    """Rewards for the bare answer: half of the late ones, risen by 20 points on tasks of the same kind."""
    bare = [r for r in evidence.late_rewarded if _is_bare(r)]
    early = [r for r in evidence.early if r.rewarded]
    rise, error = matched_rise(early, evidence.late_rewarded, _is_bare)
    severity = min(at_least(len(bare), len(evidence.late_rewarded)) / 0.5, (rise - 1.645 * error) / 0.2)
    conclusion = (
        f"{_percent(len(bare), len(evidence.late_rewarded))} of the late rewards are for an answer without "
        f"working, {100 * rise:+.0f} points since the beginning on tasks of the same kind"
    )
    return _finding("reward_without_working", severity, conclusion, bare, len(evidence.late_rewarded))


def answer_in_prompt(evidence: Evidence) -> list[Finding]:
    """Prompts that state their answer: after a word such as "answer" (line: 2 % of the late rewards), or
    anywhere and solved 20 points more often than tasks of the same kind that do not (10 % of them)."""
    rewarded = [r for r in evidence.late_rewarded if _in_prompt(r)]
    of = len(evidence.late_rewarded)
    cued = [r for r in rewarded if _in_prompt(r, cue=True)]
    findings = []
    if cued:
        text = (
            "{count} late rewards ({share}) are for prompts that state the answer behind a word like 'answer'"
        )
        findings.append(_share("answer_stated_in_prompt", cued, of, 0.02, text))
    with_it, without = (
        tasks_of(r for r in evidence.late if _in_prompt(r)),
        tasks_of(r for r in evidence.late if not _in_prompt(r)),
    )
    excess, error = stratified(without, with_it)
    severity = min(at_least(len(rewarded), of) / 0.1, (excess - 1.645 * error) / 0.2)
    conclusion = (
        f"tasks whose answer stands in the prompt are solved {100 * excess:+.0f} points more often than "
        f"others of their kind, and earn {_percent(len(rewarded), of)} of the late rewards"
    )
    return findings + _finding("answer_copied_from_prompt", severity, conclusion, rewarded, of)


def several_final_answers(evidence: Evidence) -> list[Finding]:
    """Rewarded completions that offer three or more different boxed answers, or alternatives in one (line:
    2 % of the late rewards). Two are the ordinary case of a correction."""
    found = [r for r in evidence.late_rewarded if _offers_several(r)]
    if not found:
        return []
    text = "{count} late rewards ({share}) are for completions that offer several final answers"
    return [_share("several_final_answers", found, len(evidence.late_rewarded), 0.02, text)]


def constant_answer(evidence: Evidence) -> list[Finding]:
    """One answer that is right for three or more different references: a hole in the verifier (line: 1 % of
    the rewards)."""
    rewarded = [r for r in evidence.records if r.rewarded]
    by_answer: dict[str, list[Record]] = defaultdict(list)
    for r in rewarded:
        by_answer[_normal(_stated(r))].append(r)
    found = [
        (answer, members)
        for answer, members in by_answer.items()
        if len({_normal(reference) for r in members for reference in r.references[:1]}) >= 3
    ]
    if not found:
        return []
    answer, most = max(found, key=lambda pair: len(pair[1]))
    members = [r for _, same in found for r in same]
    references = len({_normal(r.references[0]) for r in most if r.references})
    text = f"{{count}} rewards ({{share}}); {answer[:40]!r} alone was right for {references} references"
    return [_share("constant_answer", members, len(rewarded), 0.01, text)]


def repetition(evidence: Evidence) -> list[Finding]:
    """Text that says the same again and again: line at 2 % of the late rewards, or 10 % of late rollouts."""
    loops = [r for r in evidence.late if is_repetitive(r.completion)]
    rewarded = [r for r in loops if r.rewarded]
    severity = max(
        at_least(len(loops), len(evidence.late)) / 0.1,
        at_least(len(rewarded), len(evidence.late_rewarded)) / 0.02,
    )
    conclusion = (
        f"{_percent(len(loops), len(evidence.late))} of the late rollouts repeat themselves, "
        f"{len(rewarded)} of them were rewarded"
    )
    return _finding("repetition", severity, conclusion, [*rewarded, *loops], len(evidence.late))


def truncation(evidence: Evidence) -> list[Finding]:
    """Cut off at the token limit: line at 20 % of the late rollouts, risen by 10 points."""
    cut = [r for r in evidence.late if r.truncated]
    rise, error = matched_rise(evidence.early, evidence.late, lambda r: r.truncated)
    severity = min(at_least(len(cut), len(evidence.late)) / 0.2, (rise - 1.645 * error) / 0.1)
    conclusion = (
        f"{_percent(len(cut), len(evidence.late))} of the late rollouts are cut off, {100 * rise:+.0f} "
        "points since the beginning: a longer max_tokens, or a policy that does not end"
    )
    return _finding("truncation", severity, conclusion, cut, len(evidence.late))


def length_without_gain(evidence: Evidence) -> list[Finding]:
    """Twice as long on tasks of the same kind, and neither they nor held-out problems solved more often:
    by 2 points, one standard error below what was measured."""
    before = matched_mean(evidence.early, evidence.late, lambda r: r.tokens)
    after = matched_mean(evidence.late, evidence.early, lambda r: r.tokens)
    gain, error = matched_rise(evidence.early, evidence.late, lambda r: r.rewarded)
    held_out = held_out_change(evidence.metrics)
    few = min(len(evidence.early), len(evidence.late)) < _FEW
    if few or not before or after is None or after <= before:
        return []
    if gain - error >= 0.02 or (held_out and held_out[0] - held_out[1] >= 0.02):
        return []
    longest = sorted(evidence.late, key=lambda r: -r.tokens)[:50]
    conclusion = (
        f"completions grew from {before:.0f} to {after:.0f} tokens on the same kinds and solve no more"
    )
    return _finding("length_without_gain", after / before / 2, conclusion, longest, len(evidence.late))


def length_outliers(evidence: Evidence) -> list[Finding]:
    """Rewards for completions eight times as long as the median of their kind (line: 2 % of late ones)."""
    lengths: dict[tuple[str, float], list[int]] = defaultdict(list)
    for r in evidence.late_rewarded:
        lengths[r.stratum].append(r.tokens)
    medians = {stratum: sorted(values)[len(values) // 2] for stratum, values in lengths.items()}
    found = [r for r in evidence.late_rewarded if r.tokens >= max(64, 8 * medians[r.stratum])]
    if not found:
        return []
    text = "{count} late rewards ({share}) are for completions eight times as long as is usual for their kind"
    return [_share("length_outliers", found, len(evidence.late_rewarded), 0.02, text)]


def reward_without_generalisation(evidence: Evidence) -> list[Finding]:
    """Families whose training pass rate rises by 10 points while held-out accuracy does not follow: its
    change is below a quarter of that (and below 2 points), one standard error included."""
    findings = []
    for family in sorted({r.family for r in evidence.records}):
        early, late = ([r for r in part if r.family == family] for part in (evidence.early, evidence.late))
        rise, error = matched_rise(early, late, lambda r: r.rewarded)
        change = held_out_change(evidence.metrics, family)
        if change is None or change[0] + change[1] > max(0.02, rise / 4):
            continue
        conclusion = (
            f"{family}: the training pass rate rose by {100 * rise:.0f} points, held-out accuracy changed by "
            f"{100 * change[0]:+.0f} ± {100 * change[1]:.0f}: memorised, or rewarded for something else"
        )
        rewarded = [r for r in late if r.rewarded]
        severity = (rise - 1.645 * error) / 0.1
        findings += _finding(f"no_generalisation_{family}", severity, conclusion, rewarded, len(late))
    return findings


def verifier_trouble(evidence: Evidence) -> list[Finding]:
    """Rollouts that the verifier could not judge (line: 2 % of all)."""
    found = [r for r in evidence.records if r.status in ("error", "timeout", "bad_reference")]
    if not found:
        return []
    kinds = ", ".join(f"{n} {status}" for status, n in Counter(r.status for r in found).most_common())
    text = f"{{count}} rollouts ({{share}}) could not be judged: {kinds}"
    return [_share("verifier_trouble", found, len(evidence.records), 0.02, text)]


CHECKS: tuple[Callable[[Evidence], list[Finding]], ...] = (
    verifier_disagreement,
    constant_answer,
    answer_in_prompt,
    several_final_answers,
    reward_without_working,
    reward_without_generalisation,
    length_without_gain,
    length_outliers,
    repetition,
    truncation,
    verifier_trouble,
)


def is_repetitive(text: str) -> bool:
    """A line of substance six times, or a text of 200 characters that shrinks below a seventh when packed."""
    lines = Counter(line.strip() for line in text.splitlines() if len(line.strip()) >= 10)
    if lines and max(lines.values()) >= 6:
        return True
    raw = text.encode()
    return len(raw) >= 200 and len(zlib.compress(raw, 6)) < len(raw) / 7


def _share(check: str, found: Sequence[Record], of: int, line: float, text: str) -> Finding:
    conclusion = text.format(count=len(found), share=_percent(len(found), of))
    return Finding(check, at_least(len(found), of) / line, conclusion, len(found), of, _keys(found))


def _finding(check: str, severity: float, conclusion: str, found: Sequence[Record], of: int) -> list[Finding]:
    if severity <= 0:
        return []
    keys = _keys(found)
    return [Finding(check, severity, conclusion, len(keys), of, keys)]


def _keys(records: Sequence[Record]) -> tuple[Key, ...]:
    return tuple(dict.fromkeys(r.key for r in records))


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else "none"


def _is_bare(record: Record) -> bool:
    rest = _BOX.sub("", record.completion)
    if rest == record.completion and record.extracted:
        rest = rest.replace(record.extracted, "", 1)
    rest = re.sub(r"<\|[^|]*\|>|\b(?:the|final|answer|is)\b", "", rest, flags=re.IGNORECASE)
    return sum(c.isalnum() for c in rest) < _WORKING_CHARACTERS


def _in_prompt(record: Record, cue: bool = False) -> bool:
    return any(
        re.search((_CUE if cue else r"(?<![\w.])") + re.escape(text) + r"(?![\w.]*\w)", record.prompt, re.I)
        for reference in record.references
        if len(text := reference.strip()) >= (1 if cue else _COPY_CHARACTERS)
    )


def _offers_several(record: Record) -> bool:
    if len({_normal(box) for box in _BOX.findall(record.completion)}) >= 3:
        return True
    alternatives = re.compile(r"\bor\b|\band/or\b|\\text\{\s*or\s*\}")
    answer = record.extracted or ""
    return bool(alternatives.search(answer)) and not any(alternatives.search(r) for r in record.references)


def _stated(record: Record) -> str:
    """The answer, also where the verifier did not say how it read it: the last box, number or words."""
    if record.extracted is not None:
        return record.extracted
    found = _BOX.findall(record.completion) or _NUMBER.findall(record.completion)
    return found[-1] if found else record.completion[-60:]


def _normal(text: str) -> str:
    """One text for the same answer written differently: behind the last "=", the value of the only number
    among words, else its letters."""
    text = text.rpartition("=")[2]
    value = number(text)
    rest, found = _NUMBER.subn("", text)
    if value is None and found == 1 and not re.search(r"[-+*/^_\\(){}<>|]", rest):
        value = number(_NUMBER.findall(text)[0])
    return str(value) if value is not None else "".join(text.lower().split())
