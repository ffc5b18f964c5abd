"""Slow is not stuck: what the loop takes for a stall."""

from __future__ import annotations

import pytest

from reasoner import stall
from reasoner.errors import ReasonerError
from reasoner.stall import LOOK_S, SILENT_STALL_S, STALL_S, StallWatch


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(stall.time, "monotonic", lambda: self.now)

    def wait(self, watch: StallWatch, seconds: float, finished: int = 0) -> None:
        """As the loop waits: with a check every ten seconds."""
        for _ in range(int(seconds // 10)):
            self.now += 10
            watch.check(finished)


def test_what_finishes_and_what_is_sampled_both_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sampled = Clock(monkeypatch), {"server-0#1": 7}
    watch = StallWatch(lambda: sampled, lambda: "3 groups are running")
    clock.wait(watch, STALL_S - 10)
    clock.wait(watch, STALL_S - 10, finished=1)
    sampled = {"server-0#1": 10}  # a long chain of thought
    clock.wait(watch, STALL_S - LOOK_S, finished=1)
    with pytest.raises(ReasonerError, match="3 groups are running: nothing has happened for 900 s"):
        clock.wait(watch, 3 * LOOK_S, finished=1)


def test_a_server_that_is_started_anew_counts_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor samples, though the sum of all tokens is below what it was; one does not answer."""
    clock, sampled = Clock(monkeypatch), {"server-0#1": 1_000_000, "server-1#1": 1_000_000}
    watch = StallWatch(lambda: sampled, lambda: "3 groups are running")
    clock.wait(watch, STALL_S - 10)
    sampled = {"server-1#2": 5}
    clock.wait(watch, STALL_S - 10)
    sampled = {"server-1#2": 9}
    clock.wait(watch, STALL_S - 10)
    sampled = {"server-0#1": 1_000_000, "server-1#2": 9}  # answers again, and has not moved
    with pytest.raises(ReasonerError):
        clock.wait(watch, STALL_S - 10)


def test_what_the_caller_did_meanwhile_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = StallWatch(dict, lambda: "3 groups are running")
    clock.now += 2 * STALL_S  # a new learner was started and took its updates again
    watch.check(0)
    clock.wait(watch, STALL_S - 2 * LOOK_S)


def test_servers_that_start_slowly_have_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = StallWatch(dict, lambda: "3 groups are running", start_s=1800)
    clock.wait(watch, 2 * 1800 + LOOK_S)  # the fleet gives up then
    with pytest.raises(ReasonerError, match="for 5400 s"):
        clock.wait(watch, 1800)


def test_servers_that_do_not_say_what_they_sample_have_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = StallWatch(None, lambda: "held_out is being evaluated")
    clock.wait(watch, SILENT_STALL_S)
    with pytest.raises(ReasonerError, match="held_out"):
        clock.wait(watch, 10)
