"""What `reasoner.cluster` does around the processes that it starts. Real ones: tests/integration."""

import socket
from types import SimpleNamespace

import pytest
import ray

from reasoner import cluster
from reasoner.config import Config
from reasoner.errors import ServerError, ServerLost
from rollouts.fleet import Fleet, State
from rollouts.sampler import RaySampler


@pytest.fixture
def silent():
    """The address of a server that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def wait_for(address, on_wait, timeout_s):
    config = Config(server={"addresses": [address], "startup_timeout_s": timeout_s})
    cluster.server_launchers(config, SimpleNamespace(end_token_ids=()), None, None, on_wait)


def test_a_server_of_others_that_never_answers_is_named(silent):
    with pytest.raises(ServerError, match=f"no answer within 1 s from {silent} in server.addresses"):
        wait_for(silent, lambda: None, timeout_s=0.6)


def test_whoever_waits_for_a_server_of_others_can_stop(silent):
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        wait_for(silent, stop, timeout_s=60)


def test_a_server_of_others_that_is_not_there_is_named():
    with pytest.raises(ServerError, match=r"server.addresses cannot be used: .*127.0.0.1:9: ConnectError"):
        wait_for("http://127.0.0.1:9", lambda: None, timeout_s=60)


@pytest.fixture
def serving(monkeypatch):
    """Processes with two servers whose answers are the values of `answers`; Ray is played."""
    answers = {}

    def get(reference, timeout):
        if isinstance(answers[reference], Exception):
            raise answers[reference]

    monkeypatch.setattr(cluster, "ray", SimpleNamespace(get=get, exceptions=ray.exceptions))
    launchers = [SimpleNamespace(name=name, max_failures=3, kill=lambda handle: None) for name in "ab"]
    servers = Fleet(launchers, restarts=True)
    for replica in servers.replicas:
        call = SimpleNamespace(remote=lambda name=replica.name: name)
        replica.state, replica.handle = State.SERVING, RaySampler(SimpleNamespace(sleep=call, wake_up=call))
    yield cluster.Processes(Config(), servers, Fleet([]), None), answers
    servers.close()


ENGINE_DIED = ray.exceptions.RayTaskError("sleep", "", ServerLost("the vLLM engine failed"))


@pytest.mark.parametrize("error", [ray.exceptions.RayActorError(), ENGINE_DIED], ids=["process", "engine"])
def test_a_server_that_dies_as_it_goes_to_sleep_is_started_anew(serving, error):
    processes, answers = serving
    answers |= {"a": error, "b": None}
    processes.sleep_servers()
    assert [str(replica.state) for replica in processes.servers.replicas] == ["dead", "serving"]


def test_a_server_lost_in_the_learners_turn_is_started_when_the_others_wake_up(serving):
    processes, answers = serving
    answers |= {"a": None, "b": None}
    processes.servers._send_ping = lambda *_: None  # nobody is there to answer
    processes.sleep_servers()
    lost = processes.servers.replicas[0]
    processes.servers.lost(lost, "killed as it slept")
    lost.since = -1e9
    processes.servers.poll()  # the learner works
    assert str(lost.state) == "dead"
    lost.launcher.start = lambda: lost.launcher.name
    processes.wake_servers()
    processes.servers.poll()
    assert [str(replica.state) for replica in processes.servers.replicas] == ["pending", "serving"]


def test_a_server_that_does_not_go_to_sleep_is_named(serving):
    processes, answers = serving
    answers |= {"a": None, "b": ray.exceptions.GetTimeoutError()}
    with pytest.raises(ServerError, match="b did not go to sleep within 600 s"):
        processes.sleep_servers()
