import pickle

import ray

from reasoner.errors import ServerError, UsageError
from rollouts.http_sampler import HTTPSampler
from rollouts.sampler import RaySampler, Sampler, own_error
from rollouts.scripted import ScriptedSampler


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
