"""Slow is not stuck: what the loop takes for a stall."""

from __future__ import annotations

import pytest

from reasoner import stall
from reasoner.errors import ReasonerError
from reasoner.stall import SILENT_STALL_S, STALL_S, StallWatch


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(stall.time, "monotonic", lambda: self.now)


def test_what_finishes_and_what_is_sampled_both_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sampled = Clock(monkeypatch), [0]
    watch = StallWatch(lambda: sampled[0], lambda: "3 groups are running")
    clock.now += STALL_S - 1
    watch.check(finished=1)
    clock.now += STALL_S - 1
    watch.check(finished=1)
    sampled[0] = 10  # a long chain of thought
    clock.now += 2
    watch.check(finished=1)
    clock.now += STALL_S + 1
    with pytest.raises(ReasonerError, match="3 groups are running: nothing has happened for 900 s"):
        watch.check(finished=1)


def test_servers_that_do_not_say_what_they_sample_have_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = StallWatch(None, lambda: "held_out is being evaluated")
    clock.now += SILENT_STALL_S - 1
    watch.check(finished=0)
    clock.now += 2
    with pytest.raises(ReasonerError, match="held_out"):
        watch.check(finished=0)
