import pickle

import numpy as np
import pytest
import ray

from reasoner.errors import ServerError, UsageError
from reasoner.types import Completion
from rollouts.http_sampler import HTTPSampler
from rollouts.packing import pack_completions, pack_sequences
from rollouts.sampler import RaySampler, Sampler, own_error
from rollouts.scripted import ScriptedSampler


def completion(tokens, reason="stop", version=1):
    count = len(tokens)
    return Completion(
        np.array(tokens, np.int32),
        -np.arange(count, dtype=np.float32),
        np.full(count, version, np.int32),
        reason,
    )


@pytest.mark.parametrize("sequences", [[], [[1, 2, 3]], [[1], [], [2, 3]], [[7] * 1000]])
def test_sequences_survive_packing(sequences):
    assert pack_sequences(sequences).unpack() == sequences


@pytest.mark.parametrize("count", [0, 1, 3])
def test_completions_survive_packing(count):
    completions = [completion([5, 6, 7][:i], reason="length", version=i) for i in range(count)]
    unpacked = pickle.loads(pickle.dumps(pack_completions(completions))).unpack()
    assert len(unpacked) == count
    for before, after in zip(completions, unpacked, strict=True):
        np.testing.assert_array_equal(before.token_ids, after.token_ids)
        np.testing.assert_array_equal(before.behaviour_logprobs, after.behaviour_logprobs)
        np.testing.assert_array_equal(before.policy_version, after.policy_version)
        assert before.finish_reason == after.finish_reason
        assert after.token_ids.dtype == np.int32
        assert after.behaviour_logprobs.dtype == np.float32


def test_all_samplers_obey_the_protocol():
    assert isinstance(HTTPSampler("http://x"), Sampler)
    assert isinstance(ScriptedSampler([[1]]), Sampler)
    assert isinstance(RaySampler(None), Sampler)


def test_http_sampler_travels_to_workers():
    copy = pickle.loads(pickle.dumps(HTTPSampler("http://x/", api_key="k", stop_token_ids=(3,))))
    assert (copy.url, copy.stop_token_ids, copy._api_key) == ("http://x", (3,), "k")


def test_our_errors_come_out_of_rays_wrapping():
    def wrapped(cause):
        return ray.exceptions.RayTaskError("generate", "traceback", cause)

    bad_prompt = UsageError("too long")
    assert own_error(wrapped(bad_prompt)) is bad_prompt
    other = own_error(wrapped(KeyError("x")))
    assert isinstance(other, ServerError)
    assert "KeyError" in str(other)
