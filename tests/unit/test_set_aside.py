"""Which requests keep their KV over a weight update, before a scheduler of vLLM's shape; the engine itself is
in tests/integration."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from reasoner.types import SamplingParams
from rollouts.requests import Batch, Request
from rollouts.set_aside import PROBE_BLOCKS, SetAside


def core(free: int, own: dict[str, int], shared: int) -> Any:
    """An engine whose running requests hold `shared` blocks of a common prompt and `own` ones each."""
    blocks = {
        name: SimpleNamespace(
            blocks=([SimpleNamespace(ref_cnt=len(own))] * shared + [SimpleNamespace(ref_cnt=1)] * count,)
        )
        for name, count in own.items()
    }
    cache = SimpleNamespace(
        block_pool=SimpleNamespace(get_num_free_blocks=lambda: free), get_blocks=blocks.__getitem__
    )
    running = [SimpleNamespace(request_id=name, is_finished=lambda: False) for name in own]
    scheduler = SimpleNamespace(running=running, kv_cache_manager=cache)
    return SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))


def live(names: str) -> dict[str, Request]:
    batch = Batch(Future(), [None] * len(names), len(names))
    return {n: Request(batch, i, [1], SamplingParams(9), tokens=[5]) for i, n in enumerate(names)}


def test_blocks_of_a_shared_prompt_make_no_room_for_the_probe() -> None:
    """Without the last one 10 blocks are free, not 10 and the prompt's: the probe needs `PROBE_BLOCKS`."""
    requests = live("abcd")
    aside = SetAside(core(free=PROBE_BLOCKS - 15, own=dict.fromkeys("abcd", 10), shared=100))
    aside.take(requests)
    assert list(requests) == ["c", "d"]  # to be computed again: 20 blocks
    assert sorted(aside.requests) == ["a", "b"]


def test_with_room_for_the_probe_all_that_have_begun_are_set_aside_and_put_back() -> None:
    requests = live("abc")
    requests["b"].tokens.clear()  # no token yet: nothing to lose
    engine = core(free=PROBE_BLOCKS, own=dict.fromkeys("abc", 10), shared=0)
    aside = SetAside(engine)
    aside.take(requests)
    assert list(requests) == ["b"]
    assert [r.request_id for r in engine.engine_core.scheduler.running] == ["b"]
    assert sorted(aside.put_back()) == ["a", "c"]
    assert [r.request_id for r in engine.engine_core.scheduler.running] == ["a", "c", "b"]
    assert not aside.requests


def test_tokens_sampled_in_doubt_are_taken_back() -> None:
    (request,) = live("a").values()
    request.tokens, request.logprobs, request.spans = [5, 6, 7], [-1.0, -2.0, -3.0], [(0, 3), (1, 4)]
    request.proved = 1
    request.take_back()
    assert (request.tokens, request.logprobs, request.spans) == ([5], [-1.0], [(0, 3)])
