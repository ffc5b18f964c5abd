"""A weight sync beside the loop: how its end is taken in, and what a learner that dies of it leaves behind.
Real learners die in tests/integration/test_learner_actor.py and tests/chaos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray_errors

from reasoner import learner_client
from reasoner.config import Config
from reasoner.learner_client import LearnerClient
from reasoner.types import SyncReport
from rollouts.fleet import Fleet, State


class Ref:
    """Stands for a Ray reference: `value` once it is `ready`."""

    def __init__(self, value: Any = None, ready: bool = True) -> None:
        self.value, self.ready = value, ready


class Call:
    """A method of an actor: each call is noted and answered with `answer`."""

    def __init__(self, name: str, answer: Any, calls: list[tuple[Any, ...]]) -> None:
        self._name, self._answer, self._calls = name, answer, calls

    def options(self, **_: Any) -> Call:
        return self

    def remote(self, *args: Any) -> Any:
        self._calls.append((self._name, *args))
        return self._answer


class World:
    """Two servers that serve policy 3, and a learner whose sync of policy 4 is `synced`."""

    def __init__(self, checkpoints: Path) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.synced = Ref(ready=False)
        launchers = [
            SimpleNamespace(name=name, max_failures=3, kill=lambda handle: None) for name in ("a", "b")
        ]
        self.servers = Fleet(launchers, needs_sync=True, restarts=True)  # type: ignore[arg-type]
        for replica in self.servers.replicas:
            replica.state, replica.handle, replica.version = State.SERVING, object(), 3
        self.config, self.learner = Config(max_staleness=1), self.new_learner()
        store = SimpleNamespace(latest=lambda: None)
        self.client = LearnerClient(self, store, checkpoints, print, lambda call: None)  # type: ignore[arg-type]

    def new_learner(self) -> Any:
        answers = {"start_sync": Ref(), "synced": self.synced}
        return SimpleNamespace(**{name: Call(name, answer, self.calls) for name, answer in answers.items()})

    def start_learner(self, model: Path) -> Ref:
        self.calls.append(("start_learner",))
        self.synced = Ref(ready=False)
        self.learner = self.new_learner()
        return Ref()

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
    monkeypatch.setattr(learner_client, "ray", fake)
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
    names = [call[0] for call in world.calls]
    assert names == ["start_sync", "synced", "start_learner", "start_sync", "synced"]
    assert world.calls[-2][1] == 4 and set(world.calls[-2][2]) == {"a#0", "b#0"}
    world.synced.ready, world.synced.value = True, SyncReport(4)
    world.client.poll_sync()
    assert world.states() == [State.SERVING, State.SERVING]
