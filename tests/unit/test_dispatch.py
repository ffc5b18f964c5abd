"""Who gets which request, and what happens to those of the dead; Ray and the fleets are played."""

import types

import pytest
import ray
import ray_errors

from reasoner.errors import ReasonerError, ServerError, ServerLost
from reasoner.types import SamplingParams, Task
from rollouts import dispatch
from rollouts.dispatch import MAX_ATTEMPTS, Dispatcher
from rollouts.fleet import Replica, State

PARAMS = SamplingParams(max_tokens=4)


class Call:
    """A Ray reference: pending until it has a result or an error."""

    def __init__(self, request):
        self.request, self.result, self.error, self.cancelled = request, None, None, False


class FakeRay:
    exceptions = ray.exceptions

    @staticmethod
    def wait(calls, num_returns, timeout):
        done = [c for c in calls if c.result is not None or c.error is not None]
        return done, [c for c in calls if c not in done]

    @staticmethod
    def get(call):
        if isinstance(call, list):
            return [FakeRay.get(one) for one in call]
        if call.error is not None:
            raise call.error
        return call.result

    @staticmethod
    def cancel(call):
        call.cancelled = True


class FakeFleet:
    """Replicas that serve; a lost one is started anew at the next poll, if `revives`."""

    def __init__(self, names, calls):
        self.calls, self.revives = calls, True
        self.replicas = []
        for name in names:
            replica = Replica(types.SimpleNamespace(name=name), State.SERVING)
            self.start(replica)
            self.replicas.append(replica)

    def start(self, replica):
        replica.generation += 1
        replica.state = State.SERVING
        replica.handle = types.SimpleNamespace(name=replica.name, run=self.run)

    def run(self, *request):
        self.calls.append(Call(request))
        return self.calls[-1]

    def pick(self, avoid=()):
        serving = [r for r in self.replicas if r.state is State.SERVING]
        return min(serving, key=lambda r: (r in avoid, r.load), default=None)

    def lost(self, replica, reason):
        replica.state, replica.handle, replica.load = State.DEAD, None, 0

    def served(self, replica): ...

    def poll(self):
        for replica in self.replicas:
            if replica.state is State.DEAD and self.revives:
                self.start(replica)


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(dispatch, "ray", FakeRay)
    monkeypatch.setattr(dispatch, "TICK_S", 0.001)
    calls = []
    servers, workers = FakeFleet(["a", "b"], calls), FakeFleet(["w", "v"], calls)
    return types.SimpleNamespace(
        dispatcher=Dispatcher(servers, workers), servers=servers, workers=workers, calls=calls
    )


def submit(w, index=0, groups=1):
    return w.dispatcher.submit([Task(f"t{index}", "1+1", "2")] * groups, 4, PARAMS, index)


def server_of(call):
    return call.request[4].name


def server_error(error):
    return ray.exceptions.RayTaskError("run", "traceback", error).make_dual_exception_instance()


def test_requests_spread_over_servers_by_load_and_a_group_stays_together(world):
    submit(world, 0, groups=2)
    submit(world, 1)
    submit(world, 2)
    assert [server_of(c) for c in world.calls] == ["a", "b", "b"]
    assert [r.load for r in world.servers.replicas] == [8, 8]
    assert world.calls[0].request[1] == 4


def test_results_are_handed_over_once_and_only_to_who_asks(world):
    first, second = submit(world, 0), submit(world, 1)
    world.calls[0].result, world.calls[1].result = ["r0"], ["r1"]
    assert world.dispatcher.finished([second], 0.01) == {second: ["r1"]}
    assert world.dispatcher.finished([first, second], 0.01) == {first: ["r0"]}
    assert world.dispatcher.finished([first, second], 0.01) == {}
    assert [r.load for r in world.servers.replicas] == [0, 0]


def test_what_a_dead_server_had_goes_to_the_other_at_once(world):
    ticket, other = submit(world, 0), submit(world, 2)
    world.servers.revives = False
    world.calls[0].error = server_error(ServerLost("killed"))
    assert world.dispatcher.finished([ticket, other], 0.01) == {}
    assert server_of(world.calls[2]) == "b" and world.calls[2].request[3] == 0
    world.calls[2].result = ["again"]
    assert world.dispatcher.finished([ticket], 0.01) == {ticket: ["again"]}


def test_a_silent_server_that_was_killed_gives_its_requests_back(world):
    ticket = submit(world)
    world.servers.lost(world.servers.replicas[0], "no answer")  # found by the health check
    assert world.dispatcher.finished([ticket], 0.01) == {}
    assert world.calls[0].cancelled and len(world.calls) == 2
    world.calls[0].result = ["too late"]
    world.calls[1].result = ["in time"]
    assert world.dispatcher.finished([ticket], 0.01) == {ticket: ["in time"]}


def test_without_any_server_requests_wait(world):
    world.servers.revives = False
    for replica in world.servers.replicas:
        world.servers.lost(replica, "killed")
    ticket = submit(world)
    assert not world.calls
    assert world.dispatcher.finished([ticket], 0.01) == {}
    world.servers.revives = True
    world.dispatcher.finished([ticket], 0.01)
    assert len(world.calls) == 1


@pytest.mark.parametrize("gone", ray_errors.GONE, ids=ray_errors.name)
def test_a_worker_that_is_gone_takes_no_server_with_it(world, gone):
    submit(world)
    world.calls[0].error = gone
    world.workers.revives = False
    world.dispatcher.finished([0], 0.01)
    assert [r.state for r in world.workers.replicas] == [State.DEAD, State.SERVING]
    assert all(r.state is State.SERVING for r in world.servers.replicas)
    assert len(world.calls) == 2


def test_another_error_is_not_sent_round(world):
    submit(world)
    world.calls[0].error = server_error(ServerError("a prompt fills the context"))
    with pytest.raises(ServerError):
        world.dispatcher.finished([0], 0.01)
    assert len(world.calls) == 1


def test_a_request_that_kills_every_server_does_not_do_so_forever(world):
    submit(world)
    with pytest.raises(ReasonerError, match=f"was sent out {MAX_ATTEMPTS} times"):
        for _ in range(MAX_ATTEMPTS + 1):
            world.calls[-1].error = server_error(ServerLost("killed"))
            world.dispatcher.finished([0], 0.01)


def test_something_beside_ends_the_wait(world):
    ticket, beside = submit(world), Call(None)
    beside.result = "done"
    assert world.dispatcher.finished([ticket], 30, beside=[beside]) == {}
