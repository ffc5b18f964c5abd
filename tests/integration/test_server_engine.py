"""One real vLLM server in a Ray actor: what it samples, what it computes, and what a sync does to it.

Every planted fault makes the comparison of server and learner logprobs fail that passes without it.
"""

import asyncio
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray

sys.path.insert(0, str(Path(__file__).parent))
import tiny_model
from tiny_model import END, MAX_DIFF, P99_DIFF, VOCAB, change_weights, learner_logprobs

from reasoner.errors import ServerError, UsageError
from reasoner.types import SamplingParams
from reasoner.weight_sync import ServersFailed, WeightSync, compare_logprobs
from rollouts.sampler import RaySampler
from rollouts.server import ServerConfig, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TAU = 0.7
CONTEXT = 256


class World:
    """A server, a learner's model, and a version that goes up with every sync."""

    def __init__(self, root: Path):
        self.path = tiny_model.make_model(root / "model")
        config = ServerConfig(
            model=self.path, max_model_len=CONTEXT, max_num_seqs=64, kv_cache_gib=0.1, seed=1
        )
        self.actor = start_server(config, name="tiny", log_dir=root, timeout_s=600)
        self.sampler = RaySampler(self.actor)
        self.model = tiny_model.load_model(self.path)
        self.version = 0

    def score(self, token_ids):
        return learner_logprobs(self.model, token_ids, TAU)

    def sync(self, **kwargs):
        sync = WeightSync([self.actor], score=self.score, temperature=TAU, **kwargs)
        self.version += 1
        try:
            return sync.sync(self.model, self.version)
        finally:
            sync.close()

    def generate(self, prompts, **kwargs):
        params = SamplingParams(**{"max_tokens": 40, "temperature": TAU} | kwargs)
        return asyncio.run(self.sampler.generate(prompts, params))

    def compare(self, prompts, completions, temperature=TAU, shift=0):
        """Behaviour logprobs against the learner's, of sampled tokens only."""
        whole = [p + c.token_ids.tolist() for p, c in zip(prompts, completions, strict=True)]
        learner = learner_logprobs(self.model, whole, temperature)
        starts = [len(p) for p in prompts]
        return compare_logprobs(
            [np.append(0, c.behaviour_logprobs[: len(c.behaviour_logprobs) - shift]) for c in completions],
            [np.append(0, s[n + shift :]) for s, n in zip(learner, starts, strict=True)],
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    tiny_model.start_ray()
    try:
        yield World(tmp_path_factory.mktemp("world"))
    finally:
        ray.shutdown()


@pytest.fixture
def fresh(world):
    """The world with new weights, synced."""
    change_weights(world.model)
    world.sync()
    return world


def agrees(diff):
    return diff.max <= MAX_DIFF and diff.p99 <= P99_DIFF


# -- sampling --------------------------------------------------------------------------------------------


def test_greedy_tokens_are_the_learners(fresh):
    import torch

    prompts = tiny_model.prompts(4, 9)
    for prompt, completion in zip(prompts, fresh.generate(prompts, temperature=0.0), strict=True):
        ids = list(prompt)
        for token in completion.token_ids.tolist():
            with torch.no_grad():
                assert int(fresh.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_one_completion_a_prompt_with_the_end_token_and_its_logprob(fresh):
    prompts = tiny_model.prompts(64, 5)
    completions = fresh.generate(prompts, max_tokens=120)
    assert len(completions) == len(prompts)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        tokens = completion.token_ids
        assert len(tokens) == len(completion.behaviour_logprobs) == len(completion.policy_version)
        assert (tokens[:-1] != END).all()
        assert (tokens[-1] == END) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(tokens) == 120
        assert (completion.policy_version == fresh.version).all()
    assert agrees(fresh.compare(prompts, completions))


def test_behaviour_logprobs_are_of_the_distribution_sampled_from(fresh):
    """A mean over many samples: E[-log p] must be the entropy at the sampling temperature."""
    prompt = tiny_model.prompts(1, 6)[0]
    completions = fresh.generate([prompt] * 400, max_tokens=1)
    import torch

    with torch.no_grad():
        logits = fresh.model(torch.tensor([prompt])).logits[0, -1].double()
    logp = torch.log_softmax(logits / TAU, 0)
    entropy = float(-(logp.exp() * logp).sum())
    sampled = np.array([-c.behaviour_logprobs[0] for c in completions], np.float64)
    spread = sampled.std() / np.sqrt(len(sampled))
    assert abs(sampled.mean() - entropy) < 4 * spread


def test_seeded_samples_repeat_and_differ_within_a_group(fresh):
    prompts = tiny_model.prompts(1, 5) * 4
    first, again = (fresh.generate(prompts, seed=7, max_tokens=20) for _ in range(2))
    texts = [c.token_ids.tolist() for c in first]
    assert texts == [c.token_ids.tolist() for c in again]
    assert len({tuple(t) for t in texts}) == 4
    assert texts != [c.token_ids.tolist() for c in fresh.generate(prompts, seed=8, max_tokens=20)]


def test_stop_strings(fresh):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fresh.path)
    completions = fresh.generate(tiny_model.prompts(32, 4), stop=("a", "3"), max_tokens=100)
    stopped = [c for c in completions if c.finish_reason == "stop" and c.token_ids[-1] != END]
    assert stopped
    for completion in completions:
        text = tokenizer.decode(completion.token_ids[:-1], skip_special_tokens=True)
        assert "a" not in text
        assert "3" not in text
    for completion in stopped:
        assert tokenizer.decode(completion.token_ids)[-1] in "a3"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([5] * CONTEXT, 1, "exceed the server's context of 256"),
        ([5] * 10, CONTEXT - 9, "10 tokens and max_tokens 247 exceed"),
        ([], 4, "empty"),
        ([5, VOCAB], 4, f"token {VOCAB}, outside the vocabulary of {VOCAB}"),
        ([5, -1], 4, "token -1"),
        ([5], 0, "max_tokens"),
    ],
)
def test_requests_that_cannot_be_served_as_asked(world, prompt, max_tokens, message):
    with pytest.raises(UsageError, match=message):
        world.generate([[5], prompt], max_tokens=max_tokens)
    asyncio.run(world.sampler.health())


def test_the_whole_context_can_be_used(fresh):
    (completion,) = fresh.generate([[5] * 10], max_tokens=CONTEXT - 10)
    assert completion.finish_reason == "stop" or len(completion.token_ids) == CONTEXT - 10


@pytest.mark.parametrize("temperature", [1.0, TAU])
def test_teacher_forced_scores_equal_the_learners(fresh, temperature):
    sequences = tiny_model.prompts(5, 30) + [[4]]
    server = asyncio.run(fresh.sampler.score(sequences, temperature))
    assert [len(s) for s in server] == [30] * 5 + [1]
    assert all(s[0] == 0 for s in server)
    learner = learner_logprobs(fresh.model, sequences, temperature)
    assert agrees(compare_logprobs(server, learner))


def test_what_was_sampled_is_in_the_prefix_cache(fresh):
    """In whole blocks of 32 tokens, those that became full while decoding included."""
    prompts = tiny_model.prompts(16, 8, seed=11)
    sampled = [c.token_ids.tolist() for c in fresh.generate(prompts, max_tokens=72)]
    tokens = max((p + s for p, s in zip(prompts, sampled, strict=True)), key=len)
    before = ray.get(fresh.actor.stats.remote()).cached_prompt_tokens
    fresh.generate([tokens], max_tokens=1)
    cached = ray.get(fresh.actor.stats.remote()).cached_prompt_tokens - before
    assert cached == (len(tokens) - 1) // 32 * 32 >= 64


def test_several_calls_at_once_come_back_to_their_callers(fresh):
    async def many():
        params = SamplingParams(max_tokens=12, temperature=0.0)
        calls = [tiny_model.prompts(count, 6, seed=count) for count in (1, 7, 30)]
        together = await asyncio.gather(*(fresh.sampler.generate(p, params) for p in calls))
        for prompts, completions in zip(calls, together, strict=True):
            alone = await fresh.sampler.generate(prompts, params)
            assert [c.token_ids.tolist() for c in completions] == [c.token_ids.tolist() for c in alone]

    asyncio.run(many())


def test_an_abandoned_call_leaves_nothing_running(fresh):
    reference = fresh.actor.generate.remote(
        _packed(tiny_model.prompts(16, 4)), SamplingParams(max_tokens=250)
    )
    while not ray.get(fresh.actor.stats.remote()).running:
        pass
    ray.cancel(reference)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(reference)
    deadline = time.monotonic() + 30
    while ray.get(fresh.actor.stats.remote()).running:
        assert time.monotonic() < deadline, "the requests of a cancelled call are still computed"
    assert fresh.generate([[5, 6]], max_tokens=2)


def _packed(prompts):
    from rollouts.packing import pack_sequences

    return pack_sequences(prompts)


# -- pause and weight updates ----------------------------------------------------------------------------


def test_requests_survive_a_pause(fresh):
    async def scenario():
        await fresh.sampler.pause()
        task = asyncio.create_task(fresh.sampler.generate([[5, 6]] * 3, SamplingParams(max_tokens=5)))
        await asyncio.sleep(0.3)
        assert not task.done()
        stats = await fresh.actor.stats.remote()
        assert (stats.running, stats.held) == (0, 3)
        assert await fresh.sampler.score([[5, 6, 7]])  # the probe works meanwhile
        await fresh.sampler.resume()
        return await task

    assert len(asyncio.run(scenario())) == 3


def test_weights_may_change_in_the_middle_of_a_completion(fresh):
    """Each part of a completion is the policy it says it is: recomputed KV, right versions."""
    import copy

    prompts = tiny_model.prompts(48, 8)
    old = copy.deepcopy(fresh.model)
    before = fresh.version

    async def scenario():
        params = SamplingParams(max_tokens=200, temperature=TAU)
        task = asyncio.create_task(fresh.sampler.generate(prompts, params))
        while (await fresh.actor.stats.remote()).running == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        change_weights(fresh.model, 0.05)
        await asyncio.to_thread(fresh.sync)
        return await task

    completions = asyncio.run(scenario())
    parts = {before: ([], []), fresh.version: ([], [])}
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = prompt + completion.token_ids.tolist()
        assert (np.diff(completion.policy_version) >= 0).all()
        for version, model in ((before, old), (fresh.version, fresh.model)):
            mine = completion.policy_version == version
            learner = learner_logprobs(model, [ids], TAU)[0][len(prompt) :]
            parts[version][0].append(np.append(0, completion.behaviour_logprobs[mine]))
            parts[version][1].append(np.append(0, learner[mine]))
    straddling = [c for c in completions if len(set(c.policy_version.tolist())) == 2]
    assert straddling
    for server, learner in parts.values():
        diff = compare_logprobs(server, learner)
        assert diff.tokens > 100
        assert agrees(diff)


def test_completions_may_keep_their_kv_over_a_weight_update_and_nobody_else_gets_it(fresh):
    """Those that had begun go on with the KV of the old weights; who begins later shares no block of it."""
    prompt = tiny_model.prompts(1, 100)[0]
    params = SamplingParams(max_tokens=150, temperature=TAU)
    before = ray.get(fresh.actor.stats.remote())

    async def scenario():
        begun = asyncio.create_task(fresh.sampler.generate([prompt] * 200, params))  # 64 at once
        while (await fresh.actor.stats.remote()).tokens_generated < before.tokens_generated + 500:
            await asyncio.sleep(0.01)
        change_weights(fresh.model, 0.05)
        await asyncio.to_thread(fresh.sync, keep_kv=True)
        later = await fresh.sampler.generate([prompt] * 4, params)
        return await begun, later

    begun, later = asyncio.run(scenario())
    after = ray.get(fresh.actor.stats.remote())
    assert after.recomputed_tokens == before.recomputed_tokens
    straddling = [c for c in begun if len(set(c.policy_version.tolist())) == 2]
    whole = [c for c in begun if (c.policy_version == fresh.version).all()]
    assert straddling and len(whole) >= 6
    assert agrees(fresh.compare([prompt] * len(later + whole), later + whole))
    for completion in straddling:
        assert np.isfinite(completion.behaviour_logprobs).all()
        assert len(completion.behaviour_logprobs) == len(completion.token_ids)
    rest = [c.behaviour_logprobs[c.policy_version == fresh.version] for c in straddling]
    scored = learner_logprobs(fresh.model, [prompt + c.token_ids.tolist() for c in straddling], TAU)
    mine = [s[-len(r) :] for s, r in zip(scored, rest, strict=True)]
    assert not agrees(compare_logprobs([np.append(0, r) for r in rest], [np.append(0, m) for m in mine]))
    fresh.sync()  # and nothing of it is left
    assert agrees(fresh.compare([prompt] * 4, fresh.generate([prompt] * 4)))


def test_nothing_leaves_the_server_while_its_weights_are_in_doubt(fresh):
    """Between probe and resume it samples on. If nobody says that the weights are right, those tokens go."""

    async def scenario():
        stats, sampler = fresh.actor.stats.remote, fresh.sampler
        begun = asyncio.create_task(sampler.generate([[5, 6]] * 8, SamplingParams(max_tokens=200)))
        while (await stats()).tokens_generated == start:
            await asyncio.sleep(0.01)
        await sampler.pause()
        await fresh.actor.update_weight_version.remote(fresh.version + 100)
        await fresh.actor.probe.remote(_packed([[5, 6, 7]]), TAU)
        short = asyncio.create_task(sampler.generate([[7, 8]] * 4, SamplingParams(max_tokens=3)))
        while (await stats()).held < 4:  # completed, and kept back
            assert not short.done()
            await asyncio.sleep(0.01)
        await sampler.pause()  # as a new learner does when the one that probed has died
        await fresh.actor.update_weight_version.remote(fresh.version)
        await fresh.actor.probe.remote(_packed([[5, 6, 7]]), TAU)
        await asyncio.sleep(0.3)
        assert not short.done() and not begun.done()
        await sampler.resume()
        return await begun + await short

    start = ray.get(fresh.actor.stats.remote()).tokens_generated
    completions = asyncio.run(scenario())
    assert len(completions) == 12
    for completion in completions:
        assert (completion.policy_version == fresh.version).all(), "a token of unproved weights"
        assert len(completion.behaviour_logprobs) == len(completion.token_ids) > 0
    prompts = [[5, 6]] * 8 + [[7, 8]] * 4
    diff = compare_logprobs(
        [np.append(0, c.behaviour_logprobs) for c in completions],
        [
            np.append(0, learner_logprobs(fresh.model, [p + c.token_ids.tolist()], 1.0)[0][2:])
            for p, c in zip(prompts, completions, strict=True)
        ],
    )
    assert agrees(diff)


def test_a_sync_is_reported(world):
    change_weights(world.model)
    report = world.sync()
    assert report.version == world.version == asyncio.run(world.sampler.version())
    assert report.bytes == sum(p.numel() * 4 for p in world.model.parameters())
    assert 0 < report.pause_seconds <= report.seconds
    assert set(report.phases) == {"load", "pause", "transfer", "probe", "compare", "resume"}
    assert sum(report.phases.values()) <= report.seconds
    assert report.probe_max_abs_diff <= MAX_DIFF


def test_adapters_alone_are_merged_into_the_servers_own_base(world):
    """A few per cent of the bytes; onto a server with other weights than the base they are refused."""
    import torch

    from reasoner.learner import Learner, LearnerConfig

    learner = Learner(world.path, LearnerConfig(lora_rank=2), temperature=TAU)
    for name, parameter in learner.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)

    def sync():
        world.version += 1
        sync = WeightSync([world.actor], score=learner.score, temperature=TAU, adapters_only=True)
        return sync.sync(learner.model, world.version)

    change_weights(world.model)
    world.sync()
    with pytest.raises(ServersFailed, match="logprobs differ"):
        sync()
    world.model = tiny_model.load_model(world.path)
    world.sync()
    for _ in range(2):  # the second one must not add to the first
        report = sync()
        assert report.bytes < 0.1 * sum(p.numel() * 4 for p in world.model.parameters())
        prompts = tiny_model.prompts(16, 8)
        completions = world.generate(prompts)
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = np.array(prompt + completion.token_ids.tolist(), np.int32)
            own = learner.score([ids])[0][len(prompt) :]
            assert np.abs(own - completion.behaviour_logprobs).max() <= MAX_DIFF
    assert np.abs(learner.score([ids])[0] - world.score([ids])[0]).max() > 0.1, "adapters matter"


def test_adapters_by_nccl_are_merged_once_all_have_arrived(world, monkeypatch):
    """vLLM's engine without its GPUs: what it hands over is loaded as whole weights in the end."""
    import torch
    from safetensors.torch import load_file
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    from rollouts.transfer import NCCLAdapterEngine

    name = "model.layers.0.self_attn.q_proj"
    weight = load_file(Path(world.path) / "model.safetensors")[f"{name}.weight"]
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)

    def receive(engine, update_info):
        for half, tensor in (("lora_A", down), ("lora_B", up)):
            buffer = tensor.clone()
            engine.model.load_weights([(f"{name}.{half}.weight", buffer)])
            buffer.zero_()  # the next chunk comes into the same memory

    class Model(torch.nn.Module):
        def load_weights(self, weights):
            self.loaded = dict(weights)

    monkeypatch.setattr(NCCLWeightTransferEngine, "receive_weights", receive)
    engine = NCCLAdapterEngine.__new__(NCCLAdapterEngine)
    model = engine.model = Model()
    engine.model_config = SimpleNamespace(model=world.path)
    engine.receive_weights(None)
    assert engine.model is model
    assert list(model.loaded) == [f"{name}.weight"]
    torch.testing.assert_close(model.loaded[f"{name}.weight"], weight + up @ down)


def test_an_update_without_a_pause_is_refused(world):
    with pytest.raises(ray.exceptions.RayTaskError, match="pause the server before"):
        ray.get(world.actor.start_weight_update.remote())


# -- planted faults --------------------------------------------------------------------------------------


def test_fault_wrong_temperature(fresh):
    prompts = tiny_model.prompts(16, 8)
    completions = fresh.generate(prompts)
    assert agrees(fresh.compare(prompts, completions))
    assert not agrees(fresh.compare(prompts, completions, temperature=1.0))


def test_fault_off_by_one(fresh):
    prompts = tiny_model.prompts(16, 8)
    completions = fresh.generate(prompts)
    assert agrees(fresh.compare(prompts, completions))
    assert not agrees(fresh.compare(prompts, completions, shift=1))


def test_fault_tied_head(fresh):
    """Without repacking the head the server would sample from a mixture of two policies: what it samples
    while the learner compares is lost with the rest."""
    change_weights(fresh.model, 0.05)

    async def sync_under_load():
        params = SamplingParams(max_tokens=200, temperature=TAU)
        calls = [fresh.sampler.generate(tiny_model.prompts(8, 4), params) for _ in range(4)]
        load = [asyncio.create_task(call) for call in calls]
        while not (await fresh.actor.stats.remote()).running:
            await asyncio.sleep(0.01)
        with pytest.raises(ServersFailed, match="logprobs differ"):
            await asyncio.to_thread(fresh.sync, repack_tied_heads=False)
        return await asyncio.gather(*load, return_exceptions=True)

    for answer in asyncio.run(sync_under_load()):
        assert isinstance(answer, ServerError) and "logprobs differ" in str(answer)
    with pytest.raises(ServerError, match="logprobs differ"):
        fresh.generate([[5, 6]])
    with pytest.raises(ServerError, match="logprobs differ"):
        asyncio.run(fresh.sampler.health())
    asyncio.run(fresh.sampler.resume())  # by force, to see what it would have sampled
    prompts = tiny_model.prompts(16, 8)
    assert not agrees(fresh.compare(prompts, fresh.generate(prompts)))
    fresh.sync()
    assert agrees(fresh.compare(prompts, fresh.generate(prompts)))


def test_fault_stale_prefix_cache(fresh):
    """Prompts of several blocks, cached under the old weights, and a sync that does not clear the cache."""
    prompts = tiny_model.prompts(8, 100)
    fresh.generate(prompts, max_tokens=2)
    change_weights(fresh.model, 0.05)
    with pytest.raises(ServersFailed, match="logprobs differ"):
        fresh.sync(clear_cache=False)
    asyncio.run(fresh.sampler.resume())
    assert not agrees(fresh.compare(prompts, fresh.generate(prompts)))
    fresh.sync()
    assert agrees(fresh.compare(prompts, fresh.generate(prompts)))


def test_completions_arrive_one_by_one_and_share_the_prefill_of_a_prompt(fresh):
    (prompt,), count = tiny_model.prompts(1, 200), 16
    params = [SamplingParams(max_tokens=1 + 3 * i, temperature=TAU) for i in range(count)]

    async def each():
        return [item async for item in fresh.sampler.generate_each([prompt] * count, params)]

    before = ray.get(fresh.actor.stats.remote())
    arrived = asyncio.run(each())
    after = ray.get(fresh.actor.stats.remote())
    assert sorted(position for position, _ in arrived) == list(range(count))
    assert all(1 <= len(c.token_ids) <= 1 + 3 * position for position, c in arrived)
    assert after.prompt_tokens - before.prompt_tokens == count * 200
    # vLLM's own count: everything but the first prompt's prefill, in whole blocks of 32
    assert after.cached_prompt_tokens - before.cached_prompt_tokens == (count - 1) * 192
