"""Several learner processes over gloo against one: gradients, metrics, checkpoints, weights for servers."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import psutil
import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from tiny_learner import TEMPERATURE, make_batch, make_model, token_ids
from transformers import AutoModelForCausalLM

from reasoner.learner import Learner, LearnerConfig
from reasoner.ranks import Ranks, full, meeting_point
from reasoner.weight_channel import GatherOnly, SharedMemoryChannel, _rendezvous

pytestmark = pytest.mark.slow

CASES = {
    "one micro-batch a rank": {},
    "many uneven micro-batches": {"micro_batch_tokens": 15},
    "minibatches": {"minibatches": 2, "loss": "ppo_clip"},
    "adapters": {"lora_rank": 4},
    "reference, checkpointing": {"kl_coef": 0.1, "gradient_checkpointing": True},
}


SAID = [[[3, 1, 2], [], [70000]], [], [[]], None]  # by rank 0: token ids, then that there are no more


def arrays(said) -> list[np.ndarray]:
    return [np.array(ids, np.int32) for ids in said]


def learner(path, ranks=None, base=None, **settings) -> Learner:
    config = LearnerConfig(**{"lr": 1e-2, "grad_clip": 1e9, **settings})
    return Learner(path, config, temperature=TEMPERATURE, ranks=ranks, reference_path=base)


def batch():
    """Off policy, so that importance weights matter; six rollouts of 4 to 21 tokens."""
    rng = np.random.default_rng(5)
    return make_batch([np.log(rng.uniform(0.01, 0.2, len(ids))) for ids in token_ids()])


def moments(one: Learner) -> dict[str, torch.Tensor]:
    """AdamW's means of the gradient: after one step (1 - beta_1) times the gradient."""
    named = dict(one.model.named_parameters())
    return {n: full(one.optimizer.state[p]["exp_avg"]) for n, p in named.items() if p.requires_grad}


def work(rank: int, size: int, address: str, model_dir, out) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.join(rank, size, address)
    heard = [ranks.broadcast(None if rank or said is None else arrays(said)) for said in SAID]
    if rank:
        (out / "heard.json").write_text(json.dumps([one and [ids.tolist() for ids in one] for one in heard]))
    for name, settings in CASES.items():
        one = learner(model_dir, ranks, **settings)
        result = one.update(batch())
        state = {"metrics": result.metrics, "noise": asdict(one.noise)}
        gathered = moments(one)
        directory = out / name
        one.save(directory)
        one.save_trainer(directory / "trainer")
        if rank == 0:
            (directory / "seen.json").write_text(json.dumps(state))
            torch.save([gathered, torch.from_numpy(result.learner_logprobs)], directory / "seen.pt")
    way_to_the_servers(learner(model_dir, ranks), out)
    resume(ranks, model_dir, out)
    ranks.leave()


def way_to_the_servers(one: Learner, out) -> None:
    """Rank 0 gathers and scores for the probe; the others take part until it lets them go."""
    if one.ranks.rank:
        GatherOnly(one.model).send()
        one.follow()
        return
    channel = SharedMemoryChannel(one.model)
    channel.load()
    sent = dict(zip(channel.init_info["names"], [view.clone() for view in channel._views], strict=True))
    channel.close()
    scores = [one.lead_score(token_ids(seed)) for seed in (0, 1)]
    one.release()
    torch.save([sent, [[torch.from_numpy(s) for s in of] for of in scores]], out / "servers.pt")


def resume(ranks: Ranks, model_dir, out) -> None:
    """What one process saved goes on in several."""
    resumed = learner(out / "alone", ranks, base=model_dir)
    resumed.load_trainer(out / "alone" / "trainer")
    gathered = moments(resumed)
    metrics = resumed.update(batch()).metrics
    if ranks.rank == 0:
        torch.save([gathered, metrics], out / "resumed.pt")


@pytest.fixture(scope="module")
def ranks_did(tmp_path_factory):
    """Directory of the model, and of what two ranks left (the vocabulary is odd: uneven shards)."""
    model_dir = make_model(tmp_path_factory.mktemp("model"))
    out = tmp_path_factory.mktemp("out")
    alone = learner(model_dir)
    alone.update(batch())
    alone.save(out / "alone")
    alone.save_trainer(out / "alone" / "trainer")
    store = meeting_point("127.0.0.1")
    torch.multiprocessing.spawn(work, (2, f"127.0.0.1:{store.port}", model_dir, out), nprocs=2)
    return model_dir, out


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_metrics_are_those_of_one_rank(ranks_did, name):
    model_dir, out = ranks_did
    alone = learner(model_dir, **CASES[name])
    expected = alone.update(batch())
    seen = json.loads((out / name / "seen.json").read_text())
    gathered, logprobs = torch.load(out / name / "seen.pt")
    for parameter, moment in moments(alone).items():
        torch.testing.assert_close(gathered[parameter], moment, atol=1e-6, rtol=1e-5)  # 0.1 of the gradient
    np.testing.assert_allclose(logprobs.numpy(), expected.learner_logprobs, atol=1e-5)
    for key, value in expected.metrics.items():
        if key != "update_seconds":
            assert seen["metrics"][key] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), key
    for key, value in asdict(alone.noise).items():
        assert seen["noise"][key] == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_what_ranks_save_one_process_loads(ranks_did, name):
    model_dir, out = ranks_did
    saved = out / name
    assert AutoModelForCausalLM.from_pretrained(saved).config.architectures == ["Qwen3ForCausalLM"]
    resumed = learner(saved, base=model_dir, **CASES[name])
    resumed.load_trainer(saved / "trainer")
    gathered, _ = torch.load(saved / "seen.pt")
    for parameter, moment in moments(resumed).items():
        assert torch.equal(gathered[parameter], moment), parameter
    assert np.isfinite(resumed.update(batch()).metrics["grad_norm"])


def test_what_one_process_saves_ranks_load(ranks_did):
    model_dir, out = ranks_did
    gathered, metrics = torch.load(out / "resumed.pt")
    alone = learner(out / "alone")
    alone.load_trainer(out / "alone" / "trainer")
    for parameter, moment in moments(alone).items():
        assert torch.equal(gathered[parameter], moment), parameter
    assert metrics["loss"] == pytest.approx(alone.update(batch()).metrics["loss"], abs=1e-5)


def test_what_rank_0_says_the_others_hear(ranks_did):
    _, out = ranks_did
    assert json.loads((out / "heard.json").read_text()) == SAID


def test_ranks_meet_where_they_were_told_and_nowhere_else():
    store = meeting_point("127.0.0.1")
    sockets = psutil.Process().net_connections(kind="inet")
    listening = [s.laddr.ip for s in sockets if s.laddr.port == store.port and s.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


def test_servers_get_whole_weights_and_the_probe_its_scores(ranks_did):
    model_dir, out = ranks_did
    sent, scores = torch.load(out / "servers.pt")
    for name, weight in load_file(model_dir / "model.safetensors").items():
        assert torch.equal(sent.pop(name), weight), name
    assert not sent
    one = learner(model_dir)
    for seed, scored in enumerate(scores):
        for a, b in zip(scored, one.score(token_ids(seed)), strict=True):
            np.testing.assert_allclose(a.numpy(), b, atol=1e-5)


def test_vllms_store_listens_on_a_port_that_was_held_for_it():
    """Where the NCCL transfer meets; NCCL itself needs GPUs."""
    from vllm.distributed.utils import StatelessProcessGroup

    with ThreadPoolExecutor(1) as beside, _rendezvous() as (host, port):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((host, port))
        server = beside.submit(StatelessProcessGroup.create, host, port, 1, 2)
        trainer = StatelessProcessGroup.create(host, port, 0, 2)
    server.result(timeout=60).send_obj("still there", dst=0)
    assert trainer.recv_obj(src=1) == "still there", "also when the port is not held any more"
