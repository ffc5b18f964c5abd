import asyncio

import numpy as np
import pytest

from reasoner.errors import ServerError, UsageError
from reasoner.types import SamplingParams
from rollouts.scripted import ScriptedSampler

PARAMS = SamplingParams(max_tokens=3)


def run(coroutine):
    return asyncio.run(coroutine)


def test_says_its_script_in_turn_and_starts_again():
    sampler = ScriptedSampler([[5, 6], [7]], logprob=-0.5, version=4)
    first, second, third = run(sampler.generate([[1], [2], [3]], PARAMS))
    assert first.token_ids.tolist() == [5, 6]
    assert second.token_ids.tolist() == [7]
    assert third.token_ids.tolist() == [5, 6]
    assert first.behaviour_logprobs.tolist() == [-0.5, -0.5]
    assert first.policy_version.tolist() == [4, 4]
    assert first.finish_reason == "stop"
    assert sampler.requests == [([[1], [2], [3]], PARAMS)]


def test_cuts_at_max_tokens():
    (cut,) = run(ScriptedSampler([[1, 2, 3, 4]]).generate([[9]], PARAMS))
    assert (cut.token_ids.tolist(), cut.finish_reason) == ([1, 2, 3], "length")
    (whole,) = run(ScriptedSampler([[1, 2, 3]]).generate([[9]], PARAMS))
    assert (whole.token_ids.tolist(), whole.finish_reason) == ([1, 2, 3], "stop")


def test_a_function_sees_prompt_params_and_number():
    sampler = ScriptedSampler(lambda prompt, params, number: [prompt[0], params.max_tokens, number])
    answers = run(sampler.generate([[8], [9]], PARAMS))
    assert [a.token_ids.tolist() for a in answers] == [[8, 3, 0], [9, 3, 1]]


def test_scores_are_zero_at_the_first_token():
    (score,) = run(ScriptedSampler([[1]], logprob=-2.0).score([[4, 5, 6]]))
    np.testing.assert_array_equal(score, np.array([0, -2, -2], np.float32))


def test_waits_while_paused_and_then_samples_under_the_new_version():
    async def scenario():
        sampler = ScriptedSampler([[1]])
        await sampler.pause()
        task = asyncio.create_task(sampler.generate([[2]], PARAMS))
        await asyncio.sleep(0.01)
        assert not task.done()
        sampler.set_version(7)
        await sampler.resume()
        (completion,) = await task
        return completion.policy_version.tolist(), await sampler.version()

    assert run(scenario()) == ([7], 7)


def test_death_reaches_waiting_and_later_calls():
    async def scenario():
        sampler = ScriptedSampler([[1]])
        await sampler.pause()
        task = asyncio.create_task(sampler.generate([[2]], PARAMS))
        await asyncio.sleep(0.005)
        sampler.die("gone")
        with pytest.raises(ServerError, match="gone"):
            await task
        with pytest.raises(ServerError, match="gone"):
            await sampler.health()

    run(scenario())


def test_refuses_what_does_not_fit_the_context():
    sampler = ScriptedSampler([[1]], max_model_len=8)
    assert run(sampler.generate([[2] * 5], PARAMS))
    with pytest.raises(UsageError, match="6 tokens and max_tokens 3 exceed .* 8"):
        run(sampler.generate([[2] * 6], PARAMS))


def test_an_empty_script_is_an_error():
    with pytest.raises(ValueError, match="empty script"):
        ScriptedSampler([])
