"""Most decoding steps need no KV slot that is not there yet: vLLM's allocation is then skipped.

The scheduler asks for slots for every running request in every step, a third of its time with hundreds of
sequences. Within a block of KV cache the answer is always the same: the block that holds the token
before holds this one too, no block becomes full (and with it part of the prefix cache), nothing is freed.
"""

from __future__ import annotations

from typing import Any


def skip_idle_allocations(scheduler: Any) -> None:
    """Changes `scheduler` (vLLM's), where its KV cache is one group of layers with full attention."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    groups = scheduler.kv_cache_config.kv_cache_groups
    if len(groups) != 1 or type(groups[0].kv_cache_spec) is not FullAttentionSpec or scheduler.connector:
        return
    manager, block_size = scheduler.kv_cache_manager, groups[0].kv_cache_spec.block_size
    allocate, nothing = manager.allocate_slots, manager.empty_kv_cache_blocks

    def allocate_slots(request: Any, num_new_tokens: int, *args: Any, **options: Any) -> Any:
        place = request.num_computed_tokens % block_size  # of the new token in its block
        within = num_new_tokens == 1 and 0 < place < block_size - 1
        if within and not args and not any(options.values()):
            return nothing
        return allocate(request, num_new_tokens, *args, **options)

    manager.allocate_slots = allocate_slots
