import asyncio
import pickle
import types

import numpy as np
import pytest
import ray
import ray_errors

from reasoner.errors import ServerError, ServerLost, UsageError
from rollouts import control
from rollouts.control import RayControl
from rollouts.http_sampler import HTTPSampler
from rollouts.launchers import WorkerHandle
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


class Gone:
    """An actor all of whose methods fail."""

    def __init__(self, error):
        self.error, self._actor_id = error, types.SimpleNamespace(hex=lambda: "0" * 32)

    def __getattr__(self, method):
        async def fail(*args):
            raise self.error

        return types.SimpleNamespace(remote=fail)


@pytest.mark.parametrize("error", ray_errors.GONE, ids=ray_errors.name)
def test_whoever_asks_a_process_that_is_gone_is_told_that_it_is_lost(monkeypatch, error):
    actor = Gone(error)
    with pytest.raises(ServerLost, match="the vLLM server died"):
        asyncio.run(RaySampler(actor).health())
    with pytest.raises(ServerLost, match="its process died"):
        asyncio.run(WorkerHandle(actor, actor.setup.remote()).health())
    played = types.SimpleNamespace(exceptions=ray.exceptions, get=lambda call, timeout: asyncio.run(call))
    monkeypatch.setattr(control, "ray", played)
    with pytest.raises(ServerLost, match="the vLLM server died"):
        RayControl(actor).probe([np.zeros(2, np.int32)], 1.0)
