"""Servers that die under an evaluation: started anew, asked again, given up after several in a row."""

import asyncio

import pytest

from reasoner.errors import ServerError, ServerLost
from reasoner.types import SamplingParams
from rollouts import restarting
from rollouts.coalescing import CoalescingSampler
from rollouts.restarting import RestartingSampler
from rollouts.scripted import ScriptedSampler

PARAMS = SamplingParams(max_tokens=4)


class Server(ScriptedSampler):
    def __init__(self, number, deaths):
        super().__init__(self._script)
        self.number, self.deaths, self.closed = number, deaths, False

    def _script(self, prompt, params, number):
        if self.number < self.deaths:
            raise ServerLost("killed\nwith details")
        return [self.number, 0]

    async def close(self, reason=""):
        self.closed = True


def sampled(deaths, requests=3):
    servers, told = [], []

    async def start(number):
        await asyncio.sleep(0.01)
        servers.append(Server(number, deaths))
        return servers[-1]

    async def all_of_them():
        sampler = RestartingSampler(start, told.append)
        try:
            found = await asyncio.gather(*(sampler.generate([[1]], PARAMS) for _ in range(requests)))
        finally:
            await sampler.close()
        return [completions[0].token_ids.tolist() for completions in found]

    try:
        return asyncio.run(all_of_them()), servers, told
    except ServerError as error:
        return error, servers, told


def test_all_requests_of_a_dead_server_are_asked_again_of_one_new_one():
    found, servers, told = sampled(deaths=1)
    assert found == [[1, 0]] * 3, "the second server has answered everything"
    assert len(servers) == 2 and all(server.closed for server in servers)
    assert told == ["the server is lost and is started anew: killed"]


def test_servers_that_die_without_an_answer_are_given_up():
    error, servers, _ = sampled(deaths=99)
    assert "died 3 times without an answer: killed" in str(error)
    assert len(servers) == 3 and all(server.closed for server in servers)


def test_a_server_that_does_not_start_is_an_error_for_all_who_wait():
    async def start(number):
        raise ServerError("no memory")

    async def ask():
        sampler = RestartingSampler(start, print)
        return await asyncio.gather(
            *(sampler.generate([[1]], PARAMS) for _ in range(2)), return_exceptions=True
        )

    assert [str(error) for error in asyncio.run(ask())] == ["no memory"] * 2


class Hung(CoalescingSampler):
    """A server that takes requests and never answers; `ill` is what its health check does."""

    def __init__(self, ill):
        super().__init__(self)
        self._ill = ill

    async def generate_each(self, prompts, params):
        await asyncio.Event().wait()
        yield

    async def health(self):
        await self._ill()


async def never():
    await asyncio.Event().wait()


async def gone():
    raise ServerLost("its node is down")


@pytest.mark.parametrize(
    ("ill", "reason"), [(never, "it has not answered for 0 s"), (gone, "its node is down")]
)
def test_a_server_that_hangs_is_started_anew_and_asked_again(monkeypatch, ill, reason):
    monkeypatch.setattr(restarting, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(restarting, "DEAD_AFTER_S", 0.05)
    told = []

    async def start(number):
        return Hung(ill) if number == 0 else Server(number, 0)

    async def ask():
        sampler = RestartingSampler(start, told.append)
        completions = await asyncio.wait_for(sampler.generate([[1]], PARAMS), 10)
        await asyncio.sleep(0.2)  # a healthy one is left alone
        assert (await sampler.generate([[1]], PARAMS))[0].token_ids.tolist() == [1, 0]
        await sampler.close()
        return completions[0].token_ids.tolist()

    assert asyncio.run(ask()) == [1, 0]
    assert told == [f"the server is lost and is started anew: {reason}"]
