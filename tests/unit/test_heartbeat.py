"""When a learner that does not answer is given up; Ray is played, the clock is turned by hand."""

from types import SimpleNamespace

import pytest
import ray

from reasoner import heartbeat
from reasoner.heartbeat import HEARTBEAT_S, SILENT_AFTER_S, Heartbeat, LearnerSilent


class Rank:
    """Answers as long as it `runs`; what it was asked meanwhile it answers later."""

    def __init__(self):
        self.runs, self.error, self.asked = True, None, 0
        self.ping = SimpleNamespace(options=lambda concurrency_group: self)

    def remote(self):
        self.asked += 1
        return self


class World:
    def __init__(self, ranks):
        self.now, self.ranks = 50.0, [Rank() for _ in range(ranks)]
        self.heartbeat = Heartbeat(self.ranks, clock=lambda: self.now)

    def look(self, seconds):
        for _ in range(round(seconds)):
            self.heartbeat.check()
            self.now += 1.0


@pytest.fixture
def two(monkeypatch):
    def get(rank):
        if rank.error:
            raise rank.error

    def wait(ranks, timeout):
        return [r for r in ranks if r.runs], [r for r in ranks if not r.runs]

    monkeypatch.setattr(heartbeat, "ray", SimpleNamespace(wait=wait, get=get, exceptions=ray.exceptions))
    return World(ranks=2)


def test_ranks_that_answer_are_asked_again_and_again(two):
    two.look(1000)
    assert [rank.asked for rank in two.ranks] == [1000 / HEARTBEAT_S] * 2


def test_any_rank_that_stops_answering_is_given_up(two):
    two.look(10)
    two.ranks[1].runs = False
    two.look(SILENT_AFTER_S)
    with pytest.raises(LearnerSilent, match=f"rank 1 has not answered for {SILENT_AFTER_S + 1:.0f} s"):
        two.look(HEARTBEAT_S + 2)


def test_one_that_was_only_slow_is_forgiven(two):
    for _ in range(5):
        two.look(10)
        two.ranks[0].runs = False
        two.look(SILENT_AFTER_S - HEARTBEAT_S)
        two.ranks[0].runs = True
    two.look(10)


def test_one_that_has_never_answered_waits_for_a_place(two):
    two.ranks[1].runs = False
    two.look(1000)


def test_a_driver_that_did_not_look_blames_nobody(two):
    two.look(6)
    for rank in two.ranks:
        rank.runs = False
    for _ in range(10):
        two.now += 3600.0  # it was stopped, and the answers have not come through yet
        two.heartbeat.check()
    for rank in two.ranks:
        rank.runs = True
    two.look(10)


def test_what_died_is_for_others_to_find(two):
    two.ranks[0].error = ray.exceptions.RayActorError()
    two.look(1000)
