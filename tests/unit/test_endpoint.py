"""Endpoints that refuse, rate-limit, break and answer garbage, and a whole evaluation of one.

`StandIn` is a small HTTP server in place of a commercial one; a real vLLM server is in
tests/integration/test_eval_endpoint.py."""

import asyncio
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reasoner.config import load_config
from reasoner.errors import ReasonerError, ServerError, UsageError
from reasoner.evaluation import EvalOptions, evaluate
from reasoner.types import SamplingParams
from rollouts.endpoint import Endpoint, EndpointClient


class StandIn:
    """Answers POSTs with `script(number, body) -> (status, headers, body)`; counts and keeps requests."""

    def __init__(self, script, models=("m",)):
        self.requests, self.headers, lock = [], [], threading.Lock()
        standin = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {}, {"data": [{"id": m} for m in models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(standin.requests)
                    standin.requests.append((self.path, body))
                    standin.headers.append(dict(self.headers))
                self.reply(*script(number, body))

            def reply(self, status, headers, body):
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()


def chat(text, tokens=3, finish="stop"):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}


def ask(script, retry_s=20.0):
    async def one(url):
        async with EndpointClient(Endpoint(url, "m", retry_s=retry_s)) as client:
            return await client.chat([{"role": "user", "content": "1+1"}], SamplingParams(8, seed=1))

    with StandIn(script) as server:
        return asyncio.run(one(server.url)), server


def test_rate_limits_and_server_errors_are_tried_again(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    failures = [(429, {"retry-after": "0"}, "slow down"), (503, {"retry-after": "0"}, "busy")]
    answer, server = ask(lambda number, body: failures[number] if number < 2 else chat("2"))
    assert (answer.text, answer.tokens, answer.prompt_tokens) == ("2", 3, 5)
    assert len(server.requests) == 3
    assert server.requests[0][0] == "/v1/chat/completions"
    assert server.headers[0]["Authorization"] == "Bearer sesame"


def test_a_rate_limit_without_end_is_an_error():
    with pytest.raises(ServerError, match="429: slow down; gave up after 0.2 s"):
        ask(lambda number, body: (429, {"retry-after": "0.05"}, "slow down"), retry_s=0.2)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {}, "<html>hello</html>"), "no JSON object"),
        ((200, {}, {"error": "?"}), "without choices"),
        ((200, {}, {"choices": [{"finish_reason": "stop"}]}), "without a message"),
        ((200, {}, {"choices": [{"message": {"content": "2"}}]}), "how many tokens"),
    ],
)
def test_garbage_is_an_error_that_shows_it(reply, message):
    with pytest.raises(ServerError, match=message):
        ask(lambda number, body: reply)


def test_a_refused_key_names_the_variable():
    with pytest.raises(UsageError, match=r"401.*OPENAI_API_KEY"):
        ask(lambda number, body: (401, {}, "who are you"))


def test_what_an_endpoint_does_not_know_is_left_out():
    def script(number, body):
        if "logprobs" in body:
            return 400, {}, {"error": "logprobs is not supported"}
        if "max_tokens" in body:
            return 400, {}, {"error": "use 'max_completion_tokens' instead"}
        return chat("2")

    answer, server = ask(script)
    assert answer.text == "2" and answer.logprobs is None
    assert server.requests[-1][1]["max_completion_tokens"] == 8


def test_what_many_requests_at_once_are_refused_for_is_left_out_of_all_of_them():
    def script(number, body):
        return (400, {}, {"error": "logprobs is not supported"}) if "logprobs" in body else chat("2")

    async def ask_all(url):
        async with EndpointClient(Endpoint(url, "m")) as client:
            asked = [client.chat([{"role": "user", "content": "1+1"}], SamplingParams(8)) for _ in range(8)]
            return await asyncio.gather(*asked)

    with StandIn(script) as server:
        assert [answer.text for answer in asyncio.run(ask_all(server.url))] == ["2"] * 8


def test_a_temperature_that_was_asked_for_is_never_left_out():
    async def ask_at(url, temperature):
        async with EndpointClient(Endpoint(url, "m")) as client:
            message = {"role": "user", "content": "1+1"}
            return await client.chat([message], SamplingParams(8, temperature=temperature))

    refusal = 400, {}, {"error": "temperature must be 1"}
    with StandIn(lambda number, body: refusal if "temperature" in body else chat("2")) as server:
        assert asyncio.run(ask_at(server.url, 1.0)).text == "2"
        with pytest.raises(UsageError, match="temperature must be 1"):
            asyncio.run(ask_at(server.url, 0.5))


def test_nobody_there_and_the_wrong_name():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"

    async def enter(endpoint):
        async with EndpointClient(endpoint):
            pass

    with pytest.raises(UsageError, match="no endpoint answers at"):
        asyncio.run(enter(Endpoint(closed, "m")))
    with StandIn(lambda *_: chat(""), models=("other",)) as server, pytest.raises(UsageError, match="other"):
        asyncio.run(enter(Endpoint(server.url, "m")))
    with pytest.raises(UsageError, match="not a URL"):
        Endpoint("localhost:8000", "m")


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text('{"prompt": "1+1", "reference": "2"}\n{"prompt": "1+2", "reference": "3"}\n')
    return path


def run(url, tasks, out, samples=4, **options):
    endpoint = Endpoint(url, "m", concurrency=2, price_in=1.0, price_out=10.0, retry_s=0.2)
    config = load_config(None, {"tasks.source": str(tasks), "eval.samples": samples})
    options = EvalOptions(out=out, endpoint=endpoint, all_tasks=True, quiet=True, **options)
    return evaluate(config, verifier="math", options=options)


def test_an_endpoint_that_breaks_keeps_what_finished_and_goes_on(tasks, tmp_path):
    broken = [True]

    def script(number, body):
        return (200, {}, "oops") if broken[0] and number >= 3 else chat(r"\boxed{2}")

    with StandIn(script) as server:
        with pytest.raises(ServerError, match="oops"):
            run(server.url, tasks, tmp_path / "eval")
        asked, broken[0] = len(server.requests), False
        result = run(server.url, tasks, tmp_path / "eval")
        assert len(server.requests) - asked == 8 - 3, "the three that finished are not asked again"
    assert result["splits"]["sums"]["samples"] == 4


def test_a_whole_evaluation_of_an_endpoint(tasks, tmp_path):
    def script(number, body):
        assert body["messages"][0]["content"].startswith("1+") and body["seed"] is not None
        return chat(r"So it is \boxed{2}.", tokens=10)

    with StandIn(script) as server:
        result = run(server.url, tasks, tmp_path / "eval", samples=2)
        asked = len(server.requests)
        again = run(server.url, tasks, tmp_path / "eval", samples=2)
        assert asked == len(server.requests) == 4, "nothing is asked twice"
    split = result["splits"]["sums"]
    assert split["pass@k"] == {"1": 0.5, "2": 0.5} and split["maj@k"] == {"1": 0.5, "2": 0.5}
    assert split["weighted_maj@k"] is None and split["best_of_k"] is None, "no logprobs, no scorer"
    # 5 prompt tokens at 1 a million, 10 completion tokens at 10 a million; every second one is right
    assert split["costs"]["price_per_sample"] == pytest.approx(105e-6)
    assert split["costs"]["price_per_correct"] == pytest.approx(210e-6)
    assert split["flops_per_sample"] is None
    assert again["splits"] == result["splits"]
    for name in ("eval.json", "results.json", "samples.parquet", "eval.html", "plots/scaling_sums.svg"):
        assert (tmp_path / "eval" / name).is_file()
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["results"]["reasoner|sums|0"]["pass@k:k=2"] == 0.5


def test_budgets_need_token_ids(tasks, tmp_path):
    with (
        StandIn(lambda number, body: chat("2")) as server,
        pytest.raises(UsageError, match="not a vLLM server"),
    ):
        run(server.url, tasks, tmp_path / "eval", budgets=(8,))


def test_a_verifier_that_was_broken_grades_again_once_it_is_mended(tasks, tmp_path):
    (tmp_path / "mendable.py").write_text(
        "import pathlib\n"
        "def check(completion, task):\n"
        f"    if not pathlib.Path({str(tmp_path / 'mended')!r}).exists():\n"
        "        raise RuntimeError('broken')\n"
        "    return task.reference in completion\n"
    )
    config = load_config(None, {"tasks.source": str(tasks), "eval.samples": 1})
    verifier = f"{tmp_path / 'mendable.py'}:check"
    with StandIn(lambda *_: chat("2")) as server:
        endpoint = Endpoint(server.url, "m")
        options = EvalOptions(out=tmp_path / "eval", endpoint=endpoint, all_tasks=True, quiet=True)
        with pytest.raises(ReasonerError, match="none of 2 samples was scored: error: RuntimeError: broken"):
            evaluate(config, verifier=verifier, options=options)
        (tmp_path / "mended").touch()
        result = evaluate(config, verifier=verifier, options=options)
        assert len(server.requests) == 2, "nothing was sampled again"
    assert result["splits"]["sums"]["pass@k"] == {"1": 0.5}
