"""Endpoints, composites and reasoning-gym's scoring as verifiers: what counts, what is left out."""

import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers import VerifierPool, load_verifier
from verifiers.adapters import for_reasoning_gym, from_reasoning_gym, from_trl, from_verl
from verifiers.composite import Composite
from verifiers.http import HttpVerifier

TASK = Task("t", "6*14?", "84", "products", 2.0, {"k": 1})


@pytest.fixture
def endpoint():
    """(url, requests, answers): each request takes the next (status, body), the last stays."""
    requests, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            if callable(body):
                body = body()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/score", requests, answers
    server.shutdown()
    server.server_close()


def test_an_endpoint_judges_a_group_in_one_request(endpoint):
    url, requests, answers = endpoint
    sent = {"status": "unparsed", "reward": 0.0, "detail": "no box"}
    answers.append((200, json.dumps({"verdicts": [True, 0.25, None, sent]})))
    verdicts = load_verifier(url).verify_group(["84", "x", "y", "z"], TASK)
    assert [(v.status, v.reward) for v in verdicts] == [
        ("correct", 1.0),
        ("wrong", 0.25),
        ("masked", None),
        ("unparsed", 0.0),
    ]
    assert len(requests) == 1 and requests[0]["completions"] == ["84", "x", "y", "z"]
    assert requests[0]["task"] == {
        "id": "t",
        "prompt": "6*14?",
        "references": ["84"],
        "family": "products",
        "difficulty": 2.0,
        "metadata": {"k": 1},
    }


def test_a_busy_endpoint_is_asked_again(endpoint):
    url, requests, answers = endpoint
    answers += [(503, "busy"), (200, '{"verdicts": [true]}')]
    assert HttpVerifier(url).verify("84", TASK).is_correct and len(requests) == 2


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, "no such page", r"HTTP 404 'no such page' \(1 attempt\)"),
        (200, "<html>", "not JSON"),
        (200, "[1]", "not an object but"),
        (200, '{"verdicts": [true, true]}', "expected 1 verdicts"),
        (200, '{"rewards": [1]}', "expected 1 verdicts, it sent"),
        (200, '{"verdicts": [NaN]}', "not a finite reward"),
        (200, '{"verdicts": [{"status": "great", "reward": 1}]}', "a verdict that is none"),
        (200, '{"verdicts": ["yes"]}', "expected bool, float"),
    ],
)
def test_nonsense_is_an_error_and_never_a_zero(endpoint, status, body, message):
    url, _, answers = endpoint
    answers.append((status, body))
    verdict = HttpVerifier(url).verify("84", TASK)
    assert verdict.status == "error" and verdict.reward is None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(verdict.detail)


def test_an_endpoint_that_is_down_or_late_is_named(endpoint):
    down = HttpVerifier("http://127.0.0.1:9/score", timeout_s=3).verify("84", TASK)
    assert down.status == "error" and "127.0.0.1:9/score: ConnectError" in down.detail
    url, _, answers = endpoint
    answers.append((200, lambda: time.sleep(1) or '{"verdicts": [true]}'))
    late = HttpVerifier(url, timeout_s=0.4).verify("84", TASK)
    assert late.status == "error" and f"{url}: no answer within 0.2 s" in late.detail


def test_an_endpoint_that_hangs_is_named_before_a_shorter_deadline_of_the_pool(endpoint):
    url, _, answers = endpoint
    answers.append((200, lambda: time.sleep(1.5) or '{"verdicts": [true]}'))
    with VerifierPool(url, timeout_s=1) as pool:
        (late,) = pool.verify_group(["84"], TASK)
    assert late.status == "error" and late.detail == f"{url}: no answer within 0.5 s (1 attempt)"


@pytest.mark.parametrize("url", ["http://", "ftp://x/y"])
def test_bad_urls(url):
    with pytest.raises(UsageError, match="verifier"):
        HttpVerifier(url)


def says(verdict):
    return lambda completion, task: verdict


def test_a_composite_is_a_weighted_mean():
    judge = Composite({"math": 3, says(0.5): 1}, correct_from=0.8)
    verdict = judge.verify("\\boxed{84}", TASK)
    assert verdict.is_correct and verdict.reward == pytest.approx((3 * 1 + 0.5) / 4)
    assert verdict.extracted == "84" and verdict.detail.startswith("math 1, ")
    wrong = judge.verify("\\boxed{85}", TASK)
    assert wrong.status == "wrong" and wrong.reward == pytest.approx(0.125)
    assert judge.answer_key("\\boxed{84}", TASK) == load_verifier("math").answer_key("\\boxed{84}", TASK)


def test_gates_must_be_passed():
    def short(completion, task):
        return len(completion) < 20

    judge = load_verifier(Composite({"math": 1}, gates=[short]))
    assert judge.verify("\\boxed{84}", TASK).reward == 1
    gated = judge.verify("so the answer at last is \\boxed{84}", TASK)
    assert (
        (gated.status, gated.reward) == ("wrong", 0.0) and "gate " in gated.detail and "short" in gated.detail
    )


def test_what_cannot_be_scored_makes_the_whole_unscored_and_is_named():
    def broken(completion, task):
        return Verdict.error("no key")

    verdict = Composite({"math": 1, broken: 1}).verify("\\boxed{84}", TASK)
    assert verdict.status == "error" and verdict.reward is None and "broken" in verdict.detail
    assert Composite({"math": 1}, gates=[says(None)]).verify("\\boxed{84}", TASK).status == "masked"


def test_a_composite_of_a_batched_part_sees_the_whole_group():
    def longest(completions, task):
        return [float(len(c) == max(map(len, completions))) for c in completions]

    longest.batched = True
    judge = Composite({longest: 1})
    assert judge.batched and [v.reward for v in judge.verify_group(["a", "bb"], TASK)] == [0, 1]


@pytest.mark.parametrize("weights", [{}, {"math": 0}, {"math": -1}])
def test_weights_must_be_positive(weights):
    with pytest.raises(UsageError, match="positive weights"):
        Composite(weights)


def test_reward_functions_that_raise_or_return_nan_are_errors():
    def nan(completions, prompts, **columns):
        return [float("nan")] * len(completions)

    assert from_trl(nan).verify("x", TASK).status == "error"
    verdict = from_verl(lambda **given: {"score": float("inf")}).verify("x", TASK)
    assert verdict.status == "error" and "finite" in verdict.detail


def test_a_trl_function_gets_what_trls_trainer_passes():
    def reward(prompts, completions, solution, completion_ids, k):
        return [(prompts, completions, solution, completion_ids, k) == expected] * 2

    expected = (["6*14?"] * 2, ["84", "x"], ["84"] * 2, [[56, 52], [120]], [1, 1])
    plain = from_trl(reward, "solution", encode=lambda text: text.encode())
    assert [v.status for v in plain.verify_group(["84", "x"], TASK)] == ["correct"] * 2

    def said(role, text):
        return [{"role": role, "content": text}]

    messages = (
        [said("user", "6*14?")] * 2,
        [said("assistant", "84"), said("assistant", "x")],
        *expected[2:],
    )
    expected = messages
    chatty = from_trl(reward, "solution", chat=True, encode=lambda text: text.encode())
    assert [v.status for v in chatty.verify_group(["84", "x"], TASK)] == ["correct"] * 2
    asked = replace(TASK, prompt=tuple(said("user", "6*14?")))
    assert plain.verify_group(["84", "x"], asked)[0].is_correct, "messages where the prompt is messages"


def test_async_rewards_are_awaited():
    async def trl(prompts, completions, answer, **columns):
        return [1.0 if a in c else None for c, a in zip(completions, answer, strict=True)]

    async def verl(data_source, solution_str, ground_truth, extra_info):
        return {"score": 0.25 + (solution_str == ground_truth and data_source == "mine" and extra_info["k"])}

    assert [v.status for v in from_trl(trl).verify_group(["84!", "no"], TASK)] == ["correct", "masked"]
    assert [from_verl(verl, "mine").verify(c, TASK).reward for c in ("84", "x")] == [1.25, 0.25]


def test_ours_scores_entries_of_reasoning_gym():
    gym = pytest.importorskip("reasoning_gym")
    with VerifierPool("math") as pool:
        score = for_reasoning_gym(pool, unscored=0.5)
        for entry in gym.create_dataset("chain_sum", size=3, seed=1):
            right, wrong = (str(int(entry["answer"]) + off) for off in (0, 1))
            assert [score(rf"\boxed{{{a}}}", entry) for a in (right, wrong)] == [1.0, 0.0]
            assert score(None, entry) == 0.0
            assert score(r"\boxed{1}", entry | {"answer": ""}) == 0.5  # a reference that cannot be read


def test_a_reasoning_gym_dataset_of_ones_own_scores():
    gym = pytest.importorskip("reasoning_gym")
    dataset = gym.create_dataset("leg_counting", seed=3, size=5)
    judge = load_verifier(from_reasoning_gym(dataset.score_answer))
    entry = dataset[2]
    task = Task("t", entry["question"], entry["answer"], metadata=entry["metadata"])
    assert judge.verify(f"<answer>{entry['answer']}</answer>", task).is_correct
    assert not judge.verify("<answer>-1</answer>", task).is_correct
