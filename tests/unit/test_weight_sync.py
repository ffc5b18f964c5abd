"""The order of a sync, the comparison and the fates of servers, with servers made of numpy."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch

from reasoner.config import Config
from reasoner.errors import ServerError, UsageError, WeightSyncError
from reasoner.learner_actor import LearnerActor
from reasoner.weight_channel import ALIGNMENT, SharedMemoryChannel
from reasoner.weight_sync import ServersFailed, Tolerance, WeightSync, compare_logprobs, probe_sequences
from rollouts.control import ServerControl, control


class Model(torch.nn.Module):
    """A tied toy: 'logprobs' are sums of the table, so that they change with the weights."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 3)
        self.head = torch.nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.gain = torch.nn.Parameter(torch.arange(5, dtype=torch.bfloat16))
        self.config = type("Config", (), {"vocab_size": 7})()


def logprobs(table, token_ids):
    scores = np.array([table[t].sum() for t in token_ids], np.float32)
    scores[0] = 0
    return scores


class FakeServer(ServerControl):
    """Maps the file as vLLM's worker does. `fault` says what goes wrong."""

    def __init__(self, name="s", fault=None, near=True):
        self.name, self.fault, self.near = name, fault, near
        self.calls, self.rejected, self.version = [], None, 0
        self.table = np.zeros((7, 3), np.float32)

    def init_weight_transfer_engine(self, init_info):
        self.calls.append("init")
        self.info = init_info
        if init_info["path"]:
            self.mapped = torch.from_file(
                init_info["path"], shared=True, size=init_info["size"], dtype=torch.uint8
            )

    def start_weight_update(self):
        self.calls.append("start")

    def update_weights(self, update_info):
        self.calls.append("update")
        if self.fault == "dies":
            raise ServerError("killed")
        if self.fault != "stale":
            at = self.info["offsets"][self.info["names"].index("embed.weight")]
            raw = self.mapped[at : at + 84].view(torch.float32).view(7, 3)
            self.table = raw.numpy().copy()

    def finish_weight_update(self):
        self.calls.append("finish")

    def shares_memory(self):
        return self.near

    def refit(self, version, weights, *args, **options):
        if not self.near:
            self.mapped = torch.from_numpy(weights)
        else:
            assert weights is None
        return super().refit(version, weights, *args, **options)

    def set_version(self, version):
        self.calls.append("version")
        self.version = version

    def pause(self, clear_cache, keep_kv=False):
        self.calls.append(f"pause {clear_cache}")
        self.kept_kv = keep_kv

    def resume(self, version):
        self.calls.append("resume")

    def reject(self, reason):
        self.calls.append("reject")
        self.rejected = reason

    def probe(self, sequences, temperature):
        self.calls.append("probe")
        token_ids = [np.append(s, 3) for s in sequences]
        scores = [logprobs(self.table, ids) / temperature for ids in token_ids]
        if self.fault == "nan":
            scores[0][1] = np.nan
        return token_ids, scores

    def world_size(self):
        return 1


def score_with(model):
    def score(token_ids):
        table = model.embed.weight.detach().numpy()
        return [logprobs(table, ids) for ids in token_ids]

    return score


def sync_for(model, *servers, **kwargs):
    return WeightSync(list(servers), score=score_with(model), **kwargs)


def test_one_sync_in_order_and_the_second_does_not_connect_again():
    model, server = Model(), FakeServer()
    sync = sync_for(model, server)
    report = sync.sync(model, 1)
    order = ["pause True", "start", "update", "finish", "version", "probe", "resume"]
    assert server.calls == ["init", *order]
    assert (report.version, server.version) == (1, 1)
    assert report.bytes == 7 * 3 * 4 + 5 * 2
    assert report.probe_max_abs_diff <= 1e-6
    assert report.pause_seconds <= report.seconds
    server.calls.clear()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    sync.sync(model, 2)
    assert server.calls == order
    np.testing.assert_array_equal(server.table, model.embed.weight.detach().numpy())


@pytest.mark.parametrize("keep_kv", [False, True])
def test_the_configuration_says_whether_completions_keep_their_kv(keep_kv):
    model, server = Model(), FakeServer()
    actor = LearnerActor()
    actor.config = Config(max_staleness=1, rollout={"keep_kv": keep_kv})
    actor.learner = SimpleNamespace(
        model=model, ranks=SimpleNamespace(rank=0), lead_score=score_with(model), release=lambda: None
    )
    actor.transfer, actor.adapters_only = "shared_memory", False
    actor.peers, actor.connected = [], []
    assert actor.sync(1, {"a": server}).version == 1
    assert server.kept_kv is keep_kv


def test_a_tied_head_travels_once_and_dtypes_are_kept():
    channel = SharedMemoryChannel(Model())
    info = channel.init_info
    assert sorted(zip(info["names"], info["dtypes"], strict=True)) == [
        ("embed.weight", "float32"),
        ("gain", "bfloat16"),
    ]
    assert all(offset % ALIGNMENT == 0 for offset in info["offsets"])
    channel.close()


def test_the_memory_has_no_name_and_no_door():
    """Nothing to leave behind, and after the handshake nobody else can map it."""
    model, server = Model(), FakeServer()
    sync = sync_for(model, server)
    sync.sync(model, 1)
    assert not os.path.exists(server.info["path"])
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    sync.sync(model, 2)  # the mappings live on
    np.testing.assert_array_equal(server.table, model.embed.weight.detach().numpy())


def test_no_memory_is_one_clear_error(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ServerError, match="no memory for .* MiB of weights"):
        sync_for(Model(), FakeServer()).sync(Model(), 1)


@pytest.mark.parametrize("fault", ["stale", "nan"])
def test_wrong_weights_are_found_and_that_server_is_not_resumed(fault):
    model = Model()
    good, bad = FakeServer("good"), FakeServer("bad", fault)
    with pytest.raises(ServersFailed, match="server bad did not take policy version 3") as caught:
        sync_for(model, good, bad).sync(model, 3)
    assert list(caught.value.failures) == [1]
    assert isinstance(caught.value, WeightSyncError)
    assert "resume" in good.calls
    assert good.rejected is None
    assert "resume" not in bad.calls
    assert "logprobs differ" in bad.rejected


def test_a_server_that_dies_does_not_take_the_others_along():
    model = Model()
    dead, good = FakeServer("dead", "dies"), FakeServer("good")
    with pytest.raises(ServersFailed, match="killed") as caught:
        sync_for(model, dead, good).sync(model, 1)
    assert list(caught.value.failures) == [0]
    assert "probe" not in dead.calls
    assert good.calls[-1] == "resume"


def test_a_mended_server_serves_again():
    model, server = Model(), FakeServer(fault="stale")
    sync = sync_for(model, server)
    with pytest.raises(ServersFailed):
        sync.sync(model, 1)
    server.fault = None
    sync.sync(model, 2)
    assert server.calls[-1] == "resume"


def test_new_servers_are_connected_anew():
    model, old, new = Model(), FakeServer(), FakeServer()
    sync = sync_for(model, old)
    sync.sync(model, 1)
    sync.replace_servers([new])
    sync.sync(model, 2)
    assert new.calls[0] == "init"
    assert (old.version, new.version) == (1, 2)


def test_a_server_on_another_node_gets_the_bytes_and_no_path(monkeypatch):
    monkeypatch.setattr(ray, "put", lambda array: array.copy())
    model, near, far = Model(), FakeServer("near"), FakeServer("far", near=False)
    sync = sync_for(model, near, far)
    sync.sync(model, 1)
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    sync.sync(model, 2)
    assert far.info["path"] is None and near.info["path"] is not None
    for server in (near, far):
        np.testing.assert_array_equal(server.table, model.embed.weight.detach().numpy())


def test_the_cache_is_cleared_unless_a_test_says_otherwise():
    model, server = Model(), FakeServer()
    sync_for(model, server, clear_cache=False).sync(model, 1)
    assert "pause False" in server.calls


def test_temperature_reaches_the_server():
    model, server = Model(), FakeServer()
    with pytest.raises(ServersFailed, match="logprobs differ"):  # this learner scores at temperature 1
        sync_for(model, server, temperature=0.5).sync(model, 1)


def test_many_small_differences_are_as_bad_as_a_large_one():
    model, server = Model(), FakeServer()
    sync = sync_for(model, server, temperature=1.01, tolerance=Tolerance(max=100.0, mean=1e-4))
    with pytest.raises(ServersFailed, match="on average"):
        sync.sync(model, 1)


def test_comparison_by_hand():
    server = [np.array([9.0, -1.0, -2.0]), np.array([9.0, -3.0])]
    learner = [np.array([0.0, -1.5, -2.0]), np.array([0.0, -3.1])]
    diff = compare_logprobs(server, learner)
    assert diff.tokens == 3
    assert diff.max == pytest.approx(0.5)
    assert diff.mean == pytest.approx(0.2)
    assert diff.p99 == pytest.approx(0.1 + 0.98 * 0.4)


def test_comparison_finds_an_off_by_one():
    rng = np.random.default_rng(0)
    right = [np.concatenate([[0], -rng.exponential(2.0, 20)])]
    assert compare_logprobs(right, right).max == 0
    shifted = [np.roll(right[0], 1)]
    assert compare_logprobs(right, shifted).max > 0.1


def test_comparison_refuses_what_cannot_be_compared():
    with pytest.raises(ValueError, match="different lengths"):
        compare_logprobs([np.zeros(3)], [np.zeros(2)])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_logprobs([np.zeros(1)], [np.zeros(1)])
    assert np.isnan(compare_logprobs([np.array([0, np.nan])], [np.zeros(2)]).max)


def test_probe_sequences_are_fixed_and_in_the_vocabulary():
    first, second = probe_sequences(11), probe_sequences(11)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert 0 <= a.min()
        assert a.max() < 11


@pytest.mark.parametrize(("servers", "backend"), [([], "shared_memory"), (["http://x"], "carrier_pigeon")])
def test_bad_arguments(servers, backend):
    with pytest.raises(UsageError):
        WeightSync(servers, backend, score=lambda ids: ids)


def test_not_a_server():
    with pytest.raises(UsageError, match="not a vLLM server"):
        control(42)
