"""Requests that keep their KV cache over a weight update: out of vLLM's scheduler while the server is paused,
and back. Meanwhile the engine can compute a probe, and nothing else.

This reaches into the scheduler (`running`), since pausing it as vLLM does would stop the probe too.
"""

from __future__ import annotations

from typing import Any

from rollouts.requests import Request

PROBE_BLOCKS = 64  # of the KV cache, kept free: more than the probe's four short sequences need


class SetAside:
    """`requests` are ours by vLLM's request id, empty when nothing is set aside."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._running: list[Any] = []  # vLLM's own
        self.requests: dict[str, Request] = {}

    def take(self, live: dict[str, Request]) -> None:
        """Of `live`, those that have sampled a token and still hold its KV: they leave `live`. Where they
        fill the whole cache the last ones stay, to be computed again: the probe needs some room. Blocks that
        they share with others, of a group's prompt, make no room."""
        scheduler = self._core.engine_core.scheduler
        cache = scheduler.kv_cache_manager
        short_of = PROBE_BLOCKS - cache.block_pool.get_num_free_blocks()
        for request in reversed(scheduler.running):
            mine = live.get(request.request_id)
            if mine is None or mine.probing or not mine.tokens:
                continue
            if short_of > 0:
                short_of -= sum(b.ref_cnt == 1 for b in cache.get_blocks(request.request_id).blocks[0])
                continue
            self._running.insert(0, request)
            self.requests[request.request_id] = live.pop(request.request_id)
        scheduler.running = [r for r in scheduler.running if r.request_id not in self.requests]

    def put_back(self) -> dict[str, Request]:
        """What was set aside and not aborted meanwhile; the scheduler goes on with it."""
        scheduler = self._core.engine_core.scheduler
        scheduler.running = [r for r in self._running if not r.is_finished()] + scheduler.running
        requests, self.requests, self._running = self.requests, {}, []
        return requests

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            del self.requests[request_id]
        self._core.abort_requests(request_ids)

    def finish_steps(self) -> list[Any]:
        """Outputs of steps that are under way (asynchronous scheduling); no new ones begin."""
        from vllm.v1.core.sched.interface import PauseState

        core, outputs = self._core.engine_core, []
        core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        while core.batch_queue:
            outputs += self._core.get_output().outputs
        core.scheduler.set_pause_state(PauseState.UNPAUSED)
        return outputs
