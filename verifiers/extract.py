"""First version: boxes, "answer is", final line."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Extraction:
    """What a completion states as its answer; `answer` is None when there is none or it is ambiguous."""

    answer: str | None
    how: str


def _boxes(text: str) -> list[tuple[int, int, str]]:
    found = []
    for match in re.finditer(r"\\f?boxed\s*\{", text):
        depth, i = 1, match.end()
        while i < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if depth == 0:
            found.append((match.start(), i, text[match.end() : i - 1]))
    return found


def extract(text: str) -> Extraction:
    text = re.sub(r"(?s)<think>.*?(</think>|\Z)", "", text)
    boxes = _boxes(text)
    if boxes:
        group = [boxes[-1]]
        for box in reversed(boxes[:-1]):
            between = text[box[1] : group[-1][0]]
            if re.fullmatch(r"[\s$.,;]*(and|or)?[\s$.,;]*", between):
                group.append(box)
            else:
                break
        if len({b[2].strip() for b in group}) > 1:
            return Extraction(None, "several boxes in one statement")
        return Extraction(boxes[-1][2].strip() or None, "box")
    phrases = re.findall(r"(?i)answer\s*(?:is|:)\s*([^\n]*)", text)
    if phrases:
        return Extraction(phrases[-1].strip().rstrip(".") or None, "phrase")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return Extraction(None, "empty")
    return Extraction(lines[-1].rpartition("=")[2].strip().rstrip(".") or None, "final line")


def candidates(text: str) -> list[str]:
    return [b[2].strip() for b in _boxes(text)]
