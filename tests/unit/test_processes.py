"""What is asked of the servers of a run together. Real ones: tests/integration."""

from types import SimpleNamespace

import pytest
import ray

from reasoner import processes
from reasoner.config import Config
from reasoner.errors import ServerError, ServerLost
from rollouts.fleet import Fleet, State
from rollouts.sampler import RaySampler


@pytest.fixture
def serving(monkeypatch):
    """Processes with two servers whose answers are the values of `answers`; Ray is played."""
    answers = {}

    def get(reference, timeout):
        if isinstance(answers[reference], Exception):
            raise answers[reference]

    monkeypatch.setattr(processes, "ray", SimpleNamespace(get=get, exceptions=ray.exceptions))
    launchers = [SimpleNamespace(name=name, max_failures=3, kill=lambda handle: None) for name in "ab"]
    servers = Fleet(launchers, restarts=True)
    for replica in servers.replicas:
        call = SimpleNamespace(remote=lambda name=replica.name: name)
        replica.state, replica.handle = State.SERVING, RaySampler(SimpleNamespace(sleep=call, wake_up=call))
    yield processes.Processes(Config(), servers, Fleet([]), None), answers
    servers.close()


ENGINE_DIED = ray.exceptions.RayTaskError("sleep", "", ServerLost("the vLLM engine failed"))


@pytest.mark.parametrize("error", [ray.exceptions.RayActorError(), ENGINE_DIED], ids=["process", "engine"])
def test_a_server_that_dies_as_it_goes_to_sleep_is_started_anew(serving, error):
    running, answers = serving
    answers |= {"a": error, "b": None}
    running.sleep_servers()
    assert [str(replica.state) for replica in running.servers.replicas] == ["dead", "serving"]


def test_a_server_lost_in_the_learners_turn_is_started_when_the_others_wake_up(serving):
    running, answers = serving
    answers |= {"a": None, "b": None}
    running.servers._send_ping = lambda *_: None  # nobody is there to answer
    running.sleep_servers()
    lost = running.servers.replicas[0]
    running.servers.lost(lost, "killed as it slept")
    lost.since = -1e9
    running.servers.poll()  # the learner works
    assert str(lost.state) == "dead"
    lost.launcher.start = lambda: lost.launcher.name
    running.wake_servers()
    running.servers.poll()
    assert [str(replica.state) for replica in running.servers.replicas] == ["pending", "serving"]


def test_a_server_that_does_not_go_to_sleep_is_named(serving):
    running, answers = serving
    answers |= {"a": None, "b": ray.exceptions.GetTimeoutError()}
    with pytest.raises(ServerError, match="b did not go to sleep within 600 s"):
        running.sleep_servers()
