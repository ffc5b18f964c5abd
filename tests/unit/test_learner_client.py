"""A weight sync beside the loop: how its end is taken in, and what a learner that dies or hangs leaves.
Real learners die in tests/integration/test_learner_actor.py and tests/chaos."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray_errors

from reasoner import heartbeat, learner_client
from reasoner.config import Config
from reasoner.learner_client import LearnerClient
from reasoner.types import SyncReport
from rollouts.fleet import Fleet, State


class Ref:
    """Stands for a Ray reference: `value` once it is `ready`."""

    def __init__(self, value: Any = None, ready: bool = True) -> None:
        self.value, self.ready = value, ready


class Call:
    """A method of an actor: each call is noted and answered with `answer()`."""

    def __init__(self, name: str, answer: Callable[[], Any], calls: list[tuple[Any, ...]]) -> None:
        self._name, self._answer, self._calls = name, answer, calls

    def options(self, **_: Any) -> Call:
        return self

    def remote(self, *args: Any) -> Any:
        self._calls.append((self._name, *args))
        return self._answer()


class World:
    """Two servers that serve policy 3, and a learner whose sync of policy 4 is `synced`."""

    def __init__(self, checkpoints: Path) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.synced = Ref(ready=False)
        self.updates: list[Ref] = []  # answers to the next updates; then they are done
        self.told: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None
        launchers = [
            SimpleNamespace(name=name, max_failures=3, kill=lambda handle: None) for name in ("a", "b")
        ]
        self.servers = Fleet(launchers, needs_sync=True, restarts=True)  # type: ignore[arg-type]
        for replica in self.servers.replicas:
            replica.state, replica.handle, replica.version = State.SERVING, object(), 3
        self.config, self.learner, self.learner_peers = Config(max_staleness=1), self.new_learner(), []
        store = SimpleNamespace(latest=lambda: None)
        self.client = LearnerClient(
            self,  # type: ignore[arg-type]
            store,  # type: ignore[arg-type]
            checkpoints,
            self.told.append,
            lambda call: self.meanwhile(),
        )

    def new_learner(self) -> Any:
        synced = self.synced
        alive = self.alive = Ref()
        answers: dict[str, Callable[[], Ref]] = {
            "start_sync": Ref,
            "synced": lambda: synced,
            "ping": lambda: alive,
            "update": lambda: self.updates.pop(0) if self.updates else Ref("done"),
        }
        return SimpleNamespace(**{name: Call(name, answer, self.calls) for name, answer in answers.items()})

    def start_learner(self, model: Path) -> Ref:
        self.calls.append(("start_learner",))
        self.synced = Ref(ready=False)
        self.learner = self.new_learner()
        return Ref()

    def names(self) -> list[str]:
        return [call[0] for call in self.calls if call[0] != "ping"]

    def states(self) -> list[State]:
        return [replica.state for replica in self.servers.replicas]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    def wait(refs: list[Ref], timeout: float = 0) -> tuple[list[Ref], list[Ref]]:
        return [r for r in refs if r.ready], [r for r in refs if not r.ready]

    def get(ref: Ref) -> Any:
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    fake = SimpleNamespace(wait=wait, get=get, exceptions=ray.exceptions)
    for module in (learner_client, heartbeat):
        monkeypatch.setattr(module, "ray", fake)
    world = World(tmp_path)
    yield world
    world.servers.close()


def test_servers_serve_on_while_a_sync_is_under_way_and_one_that_failed_it_is_lost(world: World) -> None:
    world.client.sync(4)
    world.client.poll_sync()
    assert world.client.last_sync.version == -1 and world.states() == [State.SERVING, State.SERVING]
    world.synced.ready, world.synced.value = True, SyncReport(4, failures={1: "wrong weights"})
    world.client.poll_sync()
    assert world.client.last_sync.version == 4 and world.client.syncing == []
    assert world.states() == [State.SERVING, State.DEAD]
    assert world.servers.replicas[0].version == 4


@pytest.mark.parametrize("gone", ray_errors.GONE, ids=ray_errors.name)
def test_after_a_learner_died_in_a_sync_no_server_with_the_old_policy_serves(
    world: World, gone: Exception
) -> None:
    """Nobody knows which of them it had reached: an evaluation must not sample from the old one."""
    world.client.sync(4)
    world.synced.ready, world.synced.value = True, gone
    world.client.settle(4)
    assert world.states() == [State.SYNCING, State.SYNCING]
    assert world.names() == ["start_sync", "synced", "start_learner", "start_sync", "synced"]
    assert world.calls[-2][1] == 4 and set(world.calls[-2][2]) == {"a#0", "b#0"}
    world.synced.ready, world.synced.value = True, SyncReport(4)
    world.client.poll_sync()
    assert world.states() == [State.SERVING, State.SERVING]


def test_servers_are_known_to_load_weights_as_long_as_they_may(world: World) -> None:
    refitting = lambda: [replica.refitting for replica in world.servers.replicas]  # noqa: E731
    world.client.sync(4)
    assert refitting() == [True, True]
    world.synced.ready, world.synced.value = True, SyncReport(4)
    world.client.poll_sync()
    assert refitting() == [False, False]
    world.client.sync(5)
    world.synced.ready, world.synced.value = True, ray.exceptions.RayActorError()
    world.client.poll_sync()
    world.updates = [Ref(ray.exceptions.RayActorError())]
    world.client.update(object(), 1.0)  # type: ignore[arg-type]
    assert refitting() == [False, False], "the learner that gave them its weights is dead"


@pytest.mark.parametrize("gone", ray_errors.GONE, ids=ray_errors.name)
def test_an_update_outlives_learners_that_die_of_it_and_of_the_ones_before(
    world: World, gone: Exception
) -> None:
    first, second = object(), object()
    answers = ["done", gone, gone, "done again", "done at last"]
    world.updates = [Ref(answer) for answer in answers]
    assert world.client.update(first, 1.0) == "done"  # type: ignore[arg-type]
    assert world.client.update(second, 0.5) == "done at last"  # type: ignore[arg-type]
    assert [call for call in world.calls if call[0] != "ping"] == [
        ("update", first, 1.0),
        ("update", second, 0.5),
        ("start_learner",),
        ("update", first, 1.0),  # the new one dies of it, or lives and has not done it: it gets no other
        ("start_learner",),
        ("update", first, 1.0),
        ("update", second, 0.5),
    ]


def test_a_learner_that_has_not_redone_all_gives_its_weights_to_nobody(world: World) -> None:
    lost = ray.exceptions.ObjectLostError("x", None, "")
    world.updates = [Ref("done"), Ref(lost)]
    world.client.update(object(), 1.0)  # type: ignore[arg-type]
    world.client.sync(4)
    world.synced.ready, world.synced.value = True, lost
    world.client.settle(4)  # a new learner, whose update is not answered
    assert world.names()[-2:] == ["start_learner", "update"]
    world.client.settle(4)
    assert world.names()[-4:] == ["start_learner", "update", "start_sync", "synced"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(heartbeat, "SILENT_AFTER_S", 0.05)


def test_a_learner_that_hangs_is_started_anew(world: World, impatient: None) -> None:
    hung = world.alive

    def hang_after_a_sign_of_life() -> None:
        hung.ready = world.calls.count(("ping",)) < 2

    world.meanwhile = hang_after_a_sign_of_life
    world.updates = [Ref(ready=False)]
    assert world.client.update(object(), 1.0) == "done"  # type: ignore[arg-type]
    assert world.names() == ["update", "start_learner", "update"]
    assert world.told == ["the learner hangs: it is started anew from the base model, with 0 updates to redo"]


def test_a_learner_that_hangs_in_a_sync_is_found_while_rollouts_are_waited_for(
    world: World, impatient: None
) -> None:
    hung = world.alive
    world.client.sync(4)
    deadline = time.monotonic() + 5
    while "start_learner" not in world.names():
        world.client.refit(4)
        hung.ready = world.calls.count(("ping",)) < 2
        assert time.monotonic() < deadline
    assert world.told and world.states() == [State.SYNCING, State.SYNCING]
