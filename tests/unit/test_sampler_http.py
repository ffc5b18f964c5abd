"""`HTTPSampler` against a fake vLLM server in the test: what it sends, and what it makes of the answers."""

import asyncio
import json

import httpx
import numpy as np
import pytest

from reasoner.errors import ServerError, UsageError
from reasoner.types import SamplingParams
from rollouts.http_sampler import HTTPSampler

PARAMS = SamplingParams(max_tokens=4, temperature=0.7)


class FakeServer:
    """Answers like vLLM; `bodies` holds what was asked, `version` is its weight version."""

    def __init__(self, *, scale_out=True, version="default"):
        self.bodies = []
        self.scale_out = scale_out
        self.version = version
        self.finish_reason = "stop"
        self.spans = [{"version": version, "start": 0, "end": 2}]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "max_model_len": 16}]})
        if path == "/health":
            return httpx.Response(200)
        if path == "/weight_info":
            return httpx.Response(200, json={"weight_version": self.version})
        if path == "/inference/v1/generate" and not self.scale_out:
            return httpx.Response(404)
        if request.method == "GET":
            return httpx.Response(405)
        body = json.loads(request.content)
        self.bodies.append(body)
        return self.generate(body) if path == "/inference/v1/generate" else self.complete(body)

    def generate(self, body):
        content = [{"token_id": t, "logprob": -t / 10} for t in (3, 4)]
        choice = {
            "token_ids": [3, 4],
            "logprobs": {"content": content},
            "weight_versions": self.spans,
            "finish_reason": self.finish_reason,
        }
        number = body["sampling_params"].get("n", 1)
        rows = [None] + [{str(t): {"logprob": -1.0}, "0": {"logprob": -2.0}} for t in body["token_ids"][1:]]
        return httpx.Response(
            200,
            json={
                "choices": [choice | {"index": i} for i in reversed(range(number))],
                "prompt_logprobs": rows,
            },
        )

    def complete(self, body):
        choice = {
            "token_ids": [7],
            "logprobs": {"token_logprobs": [-0.25]},
            "finish_reason": "length",
        }
        return httpx.Response(200, json={"choices": [choice | {"index": i} for i in range(body["n"])]})


def sampler_for(server, monkeypatch, **kwargs):
    sampler = HTTPSampler("http://fake:1/", **kwargs)
    client = httpx.AsyncClient(transport=httpx.MockTransport(server))
    monkeypatch.setattr(sampler, "_http", lambda: client)
    return sampler


def test_a_group_is_one_request_and_order_is_kept(monkeypatch):
    server = FakeServer(version="5")
    sampler = sampler_for(server, monkeypatch, stop_token_ids=(1,))
    answers = asyncio.run(sampler.generate([[8, 9], [8, 9], [2]], PARAMS))
    assert len(answers) == 3
    assert sorted((b["token_ids"], b["sampling_params"]["n"]) for b in server.bodies) == [
        ([2], 1),
        ([8, 9], 2),
    ]
    assert answers[0].token_ids.tolist() == [3, 4]
    np.testing.assert_allclose(answers[0].behaviour_logprobs, [-0.3, -0.4])
    assert answers[0].policy_version.tolist() == [5, 5]
    assert answers[0].finish_reason == "stop"


def test_sends_every_parameter_a_generation_config_could_change(monkeypatch):
    server = FakeServer()
    asyncio.run(sampler_for(server, monkeypatch).generate([[2]], PARAMS))
    sent = server.bodies[0]["sampling_params"]
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {k: sent[k] for k in neutral} == neutral
    assert (sent["temperature"], sent["max_tokens"], sent["logprobs"]) == (0.7, 4, 0)


def test_seeds_differ_between_prompts_but_not_between_runs(monkeypatch):
    def seeds():
        server = FakeServer()
        params = SamplingParams(max_tokens=4, seed=3)
        asyncio.run(sampler_for(server, monkeypatch).generate([[2], [4]], params))
        return {b["token_ids"][0]: b["sampling_params"]["seed"] for b in server.bodies}

    first, second = seeds(), seeds()
    assert first == second
    assert first[2] != first[4]


def test_version_spans_are_per_token(monkeypatch):
    server = FakeServer(version="2")
    server.spans = [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 1, "end": 2}]
    (answer,) = asyncio.run(sampler_for(server, monkeypatch).generate([[2]], PARAMS))
    assert answer.policy_version.tolist() == [1, 2]


def test_falls_back_to_completions_on_a_stock_server(monkeypatch):
    server = FakeServer(scale_out=False, version="3")
    (answer,) = asyncio.run(sampler_for(server, monkeypatch).generate([[2, 5]], PARAMS))
    assert server.bodies[0]["prompt"] == [2, 5]
    assert server.bodies[0]["return_token_ids"] is True
    assert answer.token_ids.tolist() == [7]
    assert answer.behaviour_logprobs.tolist() == [-0.25]
    assert answer.policy_version.tolist() == [3]


def test_holds_tokens_of_unproved_weights_back_until_they_are_proved(monkeypatch):
    server = FakeServer(version="probing:6")

    async def scenario():
        task = asyncio.create_task(sampler_for(server, monkeypatch).generate([[2]], PARAMS))
        await asyncio.sleep(0.12)
        assert not task.done()
        server.version = "6"
        (answer,) = await task
        return answer.policy_version.tolist()

    assert asyncio.run(scenario()) == [6, 6]


def test_tokens_of_weights_that_failed_are_an_error(monkeypatch):
    server = FakeServer(version="probing:6")
    sampler = sampler_for(server, monkeypatch)

    async def scenario():
        task = asyncio.create_task(sampler.generate([[2]], PARAMS))
        await asyncio.sleep(0.12)
        server.version = "failed:6 off by 3"
        with pytest.raises(ServerError, match="off by 3"):
            await task
        with pytest.raises(ServerError, match="off by 3"):
            await sampler.health()

    asyncio.run(scenario())


def test_an_aborted_request_is_an_error(monkeypatch):
    server = FakeServer()
    server.finish_reason = "abort"
    with pytest.raises(ServerError, match="aborted"):
        asyncio.run(sampler_for(server, monkeypatch).generate([[2]], PARAMS))


def test_scores_are_normalised_again_at_other_temperatures(monkeypatch):
    server = FakeServer()
    sampler = sampler_for(server, monkeypatch)
    (plain,) = asyncio.run(sampler.score([[5, 6, 7]]))
    np.testing.assert_allclose(plain, [0, -1, -1])
    assert server.bodies[-1]["sampling_params"]["prompt_logprobs"] == 0
    (half,) = asyncio.run(sampler.score([[5, 6]], temperature=0.5))
    # two tokens with logprobs -1 and -2: log softmax([-2, -4])[0]
    np.testing.assert_allclose(half, [0, -2 - np.log(np.exp(-2) + np.exp(-4))], rtol=1e-6)
    assert server.bodies[-1]["sampling_params"]["prompt_logprobs"] == -1


def test_refuses_what_the_server_would_silently_cut(monkeypatch):
    sampler = sampler_for(FakeServer(), monkeypatch)
    with pytest.raises(UsageError, match="13 tokens and max_tokens 4 exceed the context of 16"):
        asyncio.run(sampler.generate([[2] * 13], PARAMS))


@pytest.mark.parametrize(("status", "error"), [(400, UsageError), (500, ServerError), (503, ServerError)])
def test_http_errors_become_ours(monkeypatch, status, error):
    def server(request):
        return httpx.Response(status, text="why")

    with pytest.raises(error, match=f"{status}: why"):
        asyncio.run(sampler_for(server, monkeypatch).generate([[2]], PARAMS))


def test_no_server_is_a_server_error():
    with pytest.raises(ServerError, match="ConnectError"):
        asyncio.run(HTTPSampler("http://127.0.0.1:9").health())
