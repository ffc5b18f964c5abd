"""The labelled cases that ship with the verifier, written for this project from the rules in
docs/verifiers.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from reasoner.types import Task

NAMES = ("ordinary", "adversarial")


@dataclass(frozen=True)
class Case:
    """One labelled answer; `note` gives the reason where one could disagree."""

    id: str
    category: str
    gold: str | tuple[str, ...]
    pred: str
    correct: bool
    note: str = ""

    @property
    def task(self) -> Task:
        return Task(self.id, "", self.gold, family=self.category)


def load_corpus(name: str) -> list[Case]:
    """The cases of the corpus `name` (one of `NAMES`)."""
    text = (files("verifiers") / "corpus" / f"{name}.jsonl").read_text(encoding="utf-8")
    cases = []
    for line in text.splitlines():
        fields = json.loads(line)
        gold = fields.pop("gold")
        cases.append(Case(gold=tuple(gold) if isinstance(gold, list) else gold, **fields))
    return cases
