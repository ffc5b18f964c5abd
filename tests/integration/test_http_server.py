"""A vLLM server started by somebody else, with the command of docs/external_server.md."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny_model
from ports import free_port
from tiny_model import END, MAX_DIFF, P99_DIFF, change_weights, learner_logprobs

from reasoner.errors import ServerError, UsageError
from reasoner.types import SamplingParams
from reasoner.weight_sync import ServersFailed, WeightSync, compare_logprobs
from rollouts.http_sampler import HTTPSampler

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
TAU = 0.7


def documented_command(model, port):
    """(environment, arguments) of the CPU command in the documentation, for this model and port."""
    text = (ROOT / "docs" / "external_server.md").read_text()
    block = re.search(r"## On a CPU\s+```\n(.*?)```", text, re.DOTALL).group(1)
    words = shlex.split(block.replace("\\\n", " ").replace("MODEL_DIR", model).replace("8000", str(port)))
    environment = dict(word.split("=", 1) for word in words[: words.index("python")])
    return environment, [sys.executable, *words[words.index("python") + 1 :]]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("http")
    model, port = tiny_model.make_model(root / "model"), free_port()
    environment, command = documented_command(model, port)
    log = (root / "log").open("w")
    process = subprocess.Popen(
        [*command, "--api-key", "sesame"],
        env=os.environ | environment,
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for_health(f"http://127.0.0.1:{port}", process, root / "log")
        yield f"http://127.0.0.1:{port}", model
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_health(url, process, log):
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)


class World:
    def __init__(self, url, path):
        self.url = url
        self.sampler = HTTPSampler(url, api_key="sesame")
        self.model = tiny_model.load_model(path)
        self.version = 0

    def score(self, token_ids):
        return learner_logprobs(self.model, token_ids, TAU)

    def sync(self, **kwargs):
        sync = WeightSync([self.sampler], score=self.score, temperature=TAU, **kwargs)
        self.version += 1
        try:
            return sync.sync(self.model, self.version)
        finally:
            sync.close()

    def agrees(self, prompts, completions):
        whole = [p + c.token_ids.tolist() for p, c in zip(prompts, completions, strict=True)]
        learner = [s[len(p) :] for s, p in zip(self.score(whole), prompts, strict=True)]
        diff = compare_logprobs(
            [np.append(0, c.behaviour_logprobs) for c in completions], [np.append(0, s) for s in learner]
        )
        return diff.max <= MAX_DIFF and diff.p99 <= P99_DIFF


@pytest.fixture(scope="module")
def world(server):
    return World(*server)


def generate(world, prompts, **kwargs):
    return asyncio.run(
        world.sampler.generate(prompts, SamplingParams(**{"max_tokens": 40, "temperature": TAU} | kwargs))
    )


def test_samples_and_scores_like_the_learner(world):
    prompts = tiny_model.prompts(3, 7) + [tiny_model.prompts(1, 7, seed=5)[0]] * 5
    completions = generate(world, prompts)
    assert len(completions) == 8
    assert world.agrees(prompts, completions)
    assert len({tuple(c.token_ids.tolist()) for c in completions[3:]}) > 1
    for completion in completions:
        assert (completion.token_ids[-1] == END) == (completion.finish_reason == "stop")
        assert (completion.policy_version == world.version).all()
    for temperature in (1.0, TAU):
        server = asyncio.run(world.sampler.score(prompts, temperature))
        assert compare_logprobs(server, learner_logprobs(world.model, prompts, temperature)).max <= MAX_DIFF


def test_a_sync_brings_new_weights_and_version(world):
    for _ in range(2):
        change_weights(world.model, 0.05)
        report = world.sync()
        assert report.probe_max_abs_diff <= MAX_DIFF
        assert asyncio.run(world.sampler.version()) == world.version
        prompts = tiny_model.prompts(8, 100)
        completions = generate(world, prompts)
        assert world.agrees(prompts, completions)
        assert all((c.policy_version == world.version).all() for c in completions)


def test_weights_may_change_in_the_middle_of_a_completion(world):
    async def scenario():
        params = SamplingParams(max_tokens=400, temperature=TAU, stop=())
        task = asyncio.create_task(world.sampler.generate([[5, 6]] * 40, params))
        await asyncio.sleep(0.5)
        change_weights(world.model, 0.05)
        await asyncio.to_thread(world.sync)
        return await task

    completions = asyncio.run(scenario())
    assert any(set(c.policy_version.tolist()) == {world.version - 1, world.version} for c in completions)


def test_wrong_weights_are_never_used(world):
    """The tied-head fault, here with vLLM's own server around it."""

    async def straddles():
        params = SamplingParams(max_tokens=400, temperature=TAU)
        task = asyncio.create_task(world.sampler.generate([[5, 6]] * 40, params))
        await asyncio.sleep(0.5)
        change_weights(world.model, 0.05)
        with pytest.raises(ServersFailed, match="logprobs differ"):
            await asyncio.to_thread(world.sync, repack_tied_heads=False)
        with pytest.raises(ServerError, match="wrong weights"):
            await task

    asyncio.run(straddles())
    with pytest.raises(ServerError, match="wrong weights"):
        asyncio.run(world.sampler.health())

    async def waits():
        task = asyncio.create_task(world.sampler.generate([[5, 6]], SamplingParams(max_tokens=3)))
        await asyncio.sleep(1.0)
        assert not task.done()  # the server stays paused
        await asyncio.to_thread(world.sync)
        return await task

    (completion,) = asyncio.run(waits())
    assert set(completion.policy_version.tolist()) == {world.version}
    asyncio.run(world.sampler.health())


def test_falls_back_to_completions(world):
    sampler = HTTPSampler(world.url, api_key="sesame")
    sampler._has_generate = False  # as a server without --enable-scale-out
    prompts = tiny_model.prompts(3, 9)
    params = SamplingParams(max_tokens=20, temperature=TAU)
    completions = asyncio.run(sampler.generate(prompts, params))
    assert world.agrees(prompts, completions)
    assert all((c.policy_version == world.version).all() for c in completions)
    server = asyncio.run(sampler.score(prompts, TAU))
    assert compare_logprobs(server, world.score(prompts)).max <= MAX_DIFF


def test_too_long_is_refused_instead_of_cut(world):
    with pytest.raises(UsageError, match="500 tokens and max_tokens 40 exceed the context of 512"):
        generate(world, [[5] * 500])


def test_a_wrong_key_is_an_error(world):
    with pytest.raises(ServerError, match="401"):
        asyncio.run(HTTPSampler(world.url, api_key="open").generate([[5]], SamplingParams(max_tokens=2)))
