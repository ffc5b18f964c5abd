"""The state machine of replicas, with handles that obey and a clock that is turned by hand."""

import asyncio
import threading
import time

import pytest

from reasoner.errors import ServerError, ServerLost, UsageError
from rollouts import fleet as fleet_module
from rollouts.fleet import DEAD_AFTER_S, HEARTBEAT_S, SUSPECT_AFTER_S, Fleet, State


class Handle:
    """Answers health checks until it is told otherwise."""

    def __init__(self):
        self.answers = threading.Event()
        self.answers.set()
        self.runs = threading.Event()  # the process, whatever its engine does
        self.runs.set()
        self.error = None

    async def health(self):
        while not self.answers.is_set():
            await asyncio.sleep(0.001)
        if self.error:
            raise self.error

    async def version(self):
        while not self.runs.is_set():
            await asyncio.sleep(0.001)
        return 0

    def will_answer(self, refitting):
        return (self.runs if refitting else self.answers).is_set()


class Launcher:
    max_failures = 3

    def __init__(self, name):
        self.name, self.handles, self.killed, self.room, self.healthy = name, [], [], True, True

    def start(self):
        handle = Handle()
        if not self.healthy:
            handle.error = ServerLost("no GPU")
        self.handles.append(handle)
        return handle

    def placed(self):
        return self.room

    def kill(self, handle):
        self.killed.append(handle)

    def last_words(self):
        return "last words"


class World:
    def __init__(self, count=2, **kwargs):
        self.now, self.told = 1000.0, []
        self.launchers = [Launcher(f"s{i}") for i in range(count)]
        self.fleet = Fleet(self.launchers, clock=lambda: self.now, tell=self.told.append, **kwargs)
        self.fleet.restarts = True
        self.replicas = self.fleet.replicas

    def settle(self, seconds=0.0):
        """Turn the clock, then poll until the health checks under way have been taken in."""
        self.now += seconds
        for _ in range(3):
            self.fleet.poll()
            for r in self.replicas:
                deadline = time.monotonic() + 2
                while r.ping and r.handle.will_answer(r.refitting) and not r.ping.done():
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
        self.fleet.poll()

    def states(self):
        return [str(r.state) for r in self.replicas]


@pytest.fixture
def world():
    made = []

    def make(**kwargs):
        made.append(World(**kwargs))
        return made[-1]

    yield make
    for one in made:
        one.fleet.close()


def test_a_server_serves_only_after_its_sync(world):
    w = world(needs_sync=True)
    w.settle()
    assert w.states() == ["syncing", "syncing"] and w.fleet.pick() is None
    w.fleet.synced(w.replicas[1], 4)
    assert w.states() == ["syncing", "serving"] and w.fleet.pick() is w.replicas[1]


def test_a_server_that_is_late_because_it_loads_weights_serves_after_that_sync(world):
    """A load of more than `SUSPECT_AFTER_S` must not make every sync two."""
    w = world(needs_sync=True)
    w.settle()
    for replica in w.replicas:
        w.fleet.synced(replica, 4)
    w.replicas[0].handle.answers.clear()
    w.settle(HEARTBEAT_S)
    w.settle(SUSPECT_AFTER_S + 1)
    assert w.states() == ["suspect", "serving"]
    w.fleet.synced(w.replicas[0], 5)
    w.fleet.synced(w.replicas[1], 5)
    w.fleet.outdated(5)
    assert w.states() == ["serving", "serving"]
    w.replicas[0].handle.answers.set()
    w.settle(1)
    assert w.states() == ["serving", "serving"]


def test_a_server_that_loads_weights_for_minutes_goes_on_serving(world):
    """Its engine answers nothing meanwhile, also not the question that had been asked before."""
    w = world(needs_sync=True)
    w.settle()
    for replica in w.replicas:
        w.fleet.synced(replica, 4)
        replica.handle.answers.clear()
    w.settle(HEARTBEAT_S)
    w.fleet.refit({replica.key for replica in w.replicas})
    for _ in range(100):
        w.settle(HEARTBEAT_S)
    assert w.states() == ["serving", "serving"]
    w.fleet.refitted()
    w.replicas[0].handle.answers.set()
    w.settle(HEARTBEAT_S)
    w.settle(DEAD_AFTER_S + 1)
    killed = [len(launcher.killed) for launcher in w.launchers]
    assert killed == [0, 1], "the engine has to answer again"


def test_a_process_that_hangs_while_it_is_refitted_is_killed(world):
    w = world(needs_sync=True)
    w.settle()
    w.fleet.refit({w.replicas[0].key})
    w.replicas[0].handle.runs.clear()
    w.settle(HEARTBEAT_S)
    w.settle(DEAD_AFTER_S + 1)
    assert w.launchers[0].killed == w.launchers[0].handles[:1]
    assert w.replicas[0].generation == 2 and not w.replicas[0].refitting


def test_what_needs_no_sync_serves_when_healthy(world):
    w = world()
    w.settle()
    assert w.states() == ["serving", "serving"]


def test_the_shortest_queue_is_picked_and_bad_memories_come_last(world):
    w = world()
    w.settle()
    w.replicas[0].load = 16
    assert w.fleet.pick() is w.replicas[1]
    assert w.fleet.pick(avoid=[w.replicas[1]]) is w.replicas[0]
    w.replicas[0].state = State.SUSPECT
    assert w.fleet.pick(avoid=[w.replicas[1]]) is w.replicas[1], "better than none"


def test_a_lost_server_is_killed_restarted_and_refitted_before_it_serves(world):
    w = world(needs_sync=True)
    w.settle()
    for replica in w.replicas:
        w.fleet.synced(replica, 7)
    first = w.replicas[0].key
    w.fleet.lost(w.replicas[0], "died")
    assert w.launchers[0].killed == w.launchers[0].handles
    assert w.states() == ["dead", "serving"] and w.fleet.pick() is w.replicas[1]
    w.settle()
    assert w.states() == ["syncing", "serving"]
    assert w.replicas[0].key != first and w.replicas[0].version == -1
    w.fleet.synced(w.replicas[0], 7)
    assert w.states() == ["serving", "serving"]
    assert any("s0 is lost, it is started anew: died" in line for line in w.told)


def test_what_is_lost_while_starts_are_held_is_started_afterwards(world):
    """A colocated learner has the GPU: two servers lost meanwhile, for longer than darkness may last."""
    w = world(start_s=10.0)
    w.settle()
    w.fleet.held = True
    for launcher in w.launchers:
        launcher.handles[0].error = ServerLost("killed as it slept")
    w.settle(HEARTBEAT_S)
    assert w.states() == ["dead", "dead"]
    w.settle(100.0)
    assert [len(launcher.handles) for launcher in w.launchers] == [1, 1]
    w.fleet.held = False
    w.settle()
    assert [len(launcher.handles) for launcher in w.launchers] == [2, 2]
    assert w.states() == ["serving", "serving"]


def test_no_answer_first_means_no_new_requests_then_death(world):
    w = world(needs_sync=True)
    w.settle()
    for replica in w.replicas:
        w.fleet.synced(replica, 1)
    w.replicas[0].handle.answers.clear()
    w.settle(fleet_module.HEARTBEAT_S)
    w.settle(SUSPECT_AFTER_S + 1)
    assert w.states() == ["suspect", "serving"]
    w.replicas[0].handle.answers.set()
    w.settle()
    assert w.states() == ["syncing", "serving"], "it may have missed an update"
    w.fleet.synced(w.replicas[0], 1)
    w.replicas[0].handle.answers.clear()
    w.settle(fleet_module.HEARTBEAT_S)
    w.settle(DEAD_AFTER_S + 1)
    assert w.launchers[0].killed == w.launchers[0].handles[:1]


def test_who_missed_an_update_does_not_serve(world):
    w = world(needs_sync=True)
    w.settle()
    for replica in w.replicas:
        w.fleet.synced(replica, 1)
    w.fleet.synced(w.replicas[1], 2)
    w.fleet.outdated(2)
    assert w.states() == ["syncing", "serving"]


def test_one_that_never_works_is_given_up_and_without_any_other_that_is_an_error(world):
    w = world()
    w.settle()
    w.launchers[0].healthy = False
    for _ in range(3):
        w.fleet.lost(w.replicas[0], "died")
        w.settle(60)
    assert w.states()[0] == "gone"
    w.fleet.served(w.replicas[1])
    with pytest.raises(ServerError, match=r"no server is left: s1: died(?s:.*)last words"):
        for _ in range(3):
            w.fleet.lost(w.replicas[1], "died")
            w.replicas[1].state = State.SERVING


def test_an_answered_request_forgives_earlier_failures(world):
    w = world(count=1)
    for _ in range(5):
        w.settle(60)
        w.fleet.lost(w.replicas[0], "killed by somebody")
        w.settle(60)
        w.fleet.served(w.replicas[0])
    assert w.states() == ["serving"]


def test_a_server_without_a_place_waits_and_joins_later(world):
    w = world()
    w.launchers[1].room = False
    w.settle()
    w.settle(10_000)
    assert w.states() == ["serving", "pending"]
    w.launchers[1].room = True
    w.settle()
    assert w.states() == ["serving", "serving"]


def test_a_start_has_a_deadline(world):
    w = world(count=1, start_s=30)
    start = w.launchers[0].start

    def hang():
        handle = start()
        handle.answers.clear()
        return handle

    w.launchers[0].start = hang
    w.settle()
    w.settle(31)
    assert any("not ready after 30 s" in line for line in w.told)
    with pytest.raises(ServerError, match="no server has served for"):
        for _ in range(3):
            w.settle(29)


def test_one_that_fails_at_the_start_waits_until_others_serve(world):
    w = world(count=3)
    w.fleet.restarts = False
    w.launchers[0].healthy = w.launchers[2].room = False
    w.settle()
    w.settle(60)
    assert w.states() == ["dead", "serving", "pending"]
    assert w.told == ["server s0 did not start, it is tried again once the run has begun: no GPU"]
    w.launchers[0].healthy = w.fleet.restarts = True
    w.settle()
    assert w.states() == ["serving", "serving", "pending"]


@pytest.mark.parametrize("count", [1, 3])
def test_when_all_that_have_room_fail_at_the_start_that_is_an_error(world, count):
    w = world(count=count)
    w.fleet.restarts = False
    for launcher in w.launchers:
        launcher.healthy = False
    w.launchers[-1].room = count == 1
    with pytest.raises(ServerError, match="server s\\d did not start: no GPU\nlast words"):
        w.settle()


def test_a_mistake_is_not_mended_by_restarts(world):
    w = world(count=1)
    w.fleet.poll()
    w.replicas[0].handle.error = UsageError("no such verifier")
    with pytest.raises(UsageError, match="no such verifier"):
        w.settle()
        w.settle(60)
