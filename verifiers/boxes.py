"""Boxed answers: where they are, which of them make one statement, and what around them takes them back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from verifiers.phrases import (
    AFTER_REFUSES,
    CORRECTION,
    NEGATION_BEFORE,
    PART_AFTER,
    PART_BEFORE,
    SAME_STATEMENT,
)
from verifiers.units import KNOWN, singular

MAX_BOXES = 64
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_LOOKING_BACK = re.compile(
    r"\b(?:first (?:got|had|thought|wrote|found)|initially|originally|previously|mistakenly)\b[^.;\n]*\Z",
    re.IGNORECASE,
)
_SIGN_BEFORE = re.compile(r"(?:^|(?<=[$\s=({]))[-−](?:\\left)?[({]?\Z")
_UNIT_BEHIND = re.compile(
    r"\$?\s*(?:\\,|~)?\s*(?:\\(?:text|mathrm)\s*\{\s*~?)?([a-zA-Z]{2,14})\b(?!\s*[\^/(])"
)


@dataclass(frozen=True)
class Extraction:
    """`answer` is the text of the final answer, or None with the reason in `how`. `several` holds the single
    answers when one statement or paragraph makes more than one."""

    answer: str | None
    how: str
    several: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """One complete box: its span in the text and what is inside."""

    start: int
    end: int
    content: str


def find_boxes(text: str) -> list[Box]:
    """Every complete box, outermost only, in order. Linear in the length of the text."""
    starts = list(_BOX.finditer(text))[-MAX_BOXES:]
    found: list[Box] = []
    if not starts:
        return found
    ends = _brace_ends(text, starts[0].start())
    covered = -1
    for match in starts:
        if match.start() < covered:
            continue
        at = match.end()
        if at < len(text) and text[at] == "{":
            if at not in ends:
                continue
            found.append(Box(match.start(), ends[at] + 1, text[at + 1 : ends[at]]))
        else:
            bare = re.compile(r"-?\d+(?:\.\d+)?(?!\d)|[A-Za-z](?![A-Za-z])").match(text, at)
            if bare is None or match.group()[-1] not in " \t\n" and not bare.group()[0].isdigit():
                continue
            found.append(Box(match.start(), bare.end(), bare.group()))
        covered = found[-1].end
    return found


def _brace_ends(text: str, start: int) -> dict[int, int]:
    """Where each brace opened from `start` on is closed."""
    ends: dict[int, int] = {}
    waiting: list[int] = []
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if match.group() == "{":
            waiting.append(match.start())
        elif match.group() == "}" and waiting:
            ends[waiting.pop()] = match.start()
    return ends


def from_boxes(text: str, boxes: list[Box]) -> Extraction:
    while len(boxes) > 1 and _LOOKING_BACK.search(text, max(0, boxes[-1].start - 60), boxes[-1].start):
        boxes = boxes[:-1]
    group = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box.end : group[0].start]
        if len(between) > 80 or CORRECTION.search(between) or not SAME_STATEMENT.fullmatch(between):
            break
        group.insert(0, box)
    refused = _refused(text, group[0].start, group[-1].end)
    if refused:
        return Extraction(None, refused)
    contents = [box.content.strip() for box in group]
    if not contents[-1] or not any(contents):
        return Extraction(None, "an empty box")
    distinct = list(dict.fromkeys(contents))
    if len(distinct) == 1:
        if _SIGN_BEFORE.search(text, max(0, group[0].start - 8), group[0].start):
            distinct = [f"-({distinct[0]})" if not distinct[0].isdigit() else f"-{distinct[0]}"]
        elif _is_part(text, group[0].start, group[-1].end):
            return Extraction(None, "the box is part of a larger expression")
        answer = distinct[0] + _unit_behind(text, group[-1].end)
        return Extraction(answer, "box", _in_paragraph(text, boxes))
    return Extraction(", ".join(distinct), "several boxes in one statement", tuple(distinct))


def _in_paragraph(text: str, boxes: list[Box]) -> tuple[str, ...]:
    """The different answers boxed in the paragraph of the last box, when words stand between them: together
    they may answer a question for several values."""
    start = text.rfind("\n\n", 0, boxes[-1].start) + 1
    found = [box for box in boxes if box.start >= start]
    if CORRECTION.search(text[found[0].end : found[-1].start]):
        return ()
    contents = tuple(dict.fromkeys(box.content.strip() for box in found))
    return contents if len(contents) > 1 and all(contents) else ()


def _refused(text: str, start: int, end: int) -> str | None:
    """Why what stands around a box takes it back ("not …", "… or 85"), None when nothing does."""
    before = text[max(0, start - 60) : start]
    before = re.split(r"[\n.;:]", before)[-1]
    if NEGATION_BEFORE.search(before):
        return "the answer is negated"
    if re.search(r"\d\W{0,3}\s(?:or|oder|ou|或)\s+\$?$", before):
        return "hedged before the box"
    after = text[end : end + 60]
    if re.match(r"\$?\s*\?", after):
        return "a question"
    if AFTER_REFUSES.match(after):
        return "the answer is taken back"
    if re.match(
        r"\$?\s*,?\s*\(?(?:or|oder|ou|或)\s+(?:maybe |perhaps |possibly )?\$?-?\\?[\d(f]", after, re.I
    ):
        return "hedged after the box"
    return None


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether a box stands inside a larger expression, `2\\boxed{42}` or `\\sqrt{\\boxed{42}}`."""
    before = re.sub(r"</?\w+>\s*$", "", text[max(0, start - 60) : start])
    return bool(PART_BEFORE.search(before) or PART_AFTER.match(text, end))


def _unit_behind(text: str, end: int) -> str:
    """A known unit directly behind a box belongs to the answer (a percent sign does not: it may be missing in
    the reference as well)."""
    match = _UNIT_BEHIND.match(text, end)
    if match is None or match.group(1).casefold() in ("in", "as", "at", "us", "a", "may", "second"):
        return ""
    return f" \\text{{{match.group(1)}}}" if singular(match.group(1)) in KNOWN else ""
