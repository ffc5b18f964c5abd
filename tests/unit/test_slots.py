"""Which decoding steps skip vLLM's allocation of KV slots, with a scheduler of no consequence."""

import sys
from types import SimpleNamespace

import pytest

from rollouts.slots import skip_idle_allocations

BLOCK = 4


class FullAttentionSpec:
    block_size = BLOCK


class SlidingWindowSpec(FullAttentionSpec):
    pass


class Manager:
    empty_kv_cache_blocks = "nothing"

    def allocate_slots(self, request, num_new_tokens, *args, **options):
        return "asked"


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch):
    module = SimpleNamespace(FullAttentionSpec=FullAttentionSpec)
    monkeypatch.setitem(sys.modules, "vllm.v1.kv_cache_interface", module)


def manager_of(*specs, connector=None):
    groups = [SimpleNamespace(kv_cache_spec=spec) for spec in specs]
    config = SimpleNamespace(kv_cache_groups=groups)
    scheduler = SimpleNamespace(kv_cache_config=config, kv_cache_manager=Manager(), connector=connector)
    skip_idle_allocations(scheduler)
    return scheduler.kv_cache_manager


def test_only_tokens_that_neither_begin_nor_fill_a_block_are_skipped():
    manager = manager_of(FullAttentionSpec())
    answers = [
        manager.allocate_slots(SimpleNamespace(num_computed_tokens=n), 1, num_lookahead_tokens=0)
        for n in range(2 * BLOCK)
    ]
    assert answers == ["asked", "nothing", "nothing", "asked"] * 2


@pytest.mark.parametrize(
    ("tokens", "options"), [(2, {}), (1, {"num_lookahead_tokens": 1}), (1, {"new_computed_blocks": "some"})]
)
def test_anything_else_than_one_decoded_token_is_asked_for(tokens, options):
    manager = manager_of(FullAttentionSpec())
    assert manager.allocate_slots(SimpleNamespace(num_computed_tokens=1), tokens, **options) == "asked"


@pytest.mark.parametrize(
    "scheduler",
    [
        {"specs": [SlidingWindowSpec()]},  # its blocks become free again
        {"specs": [FullAttentionSpec(), FullAttentionSpec()]},
        {"specs": [FullAttentionSpec()], "connector": object()},
    ],
)
def test_other_caches_are_left_alone(scheduler):
    manager = manager_of(*scheduler.pop("specs"), **scheduler)
    assert manager.allocate_slots(SimpleNamespace(num_computed_tokens=1), 1) == "asked"
