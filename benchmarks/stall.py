"""What one weight sync costs generation: tokens not generated, and where the seconds go.

One server of the default configuration (512 sequences at once, completions of up to 128 tokens that end
where the model ends them) samples groups of the default task all the time; as many more wait as
asynchronous training keeps in flight. Windows as long as an asynchronous step, every other one with a
weight sync in it.

`sync_stall_share` = 1 - tokens with / tokens without: the pause, recomputing the KV cache and the time
until throughput is back, over the generation of one step. `sync_lost_s` is what one sync costs in seconds
of generation, which does not depend on the step: with steps n times as long the share is an n-th.

`sync_lost_s` and the breakdown come from the server's own record of its engine steps: `pause` (requests out
of the engine; it waits for the step under way, and that is no loss), `transfer` (weights loaded and
repacked), `probe`, and `recompute`: engine steps after the resume, as far as they generated less than those
before the sync would have in the same time, until one reaches 90 % of their rate.

    python -m benchmarks.stall [--model smollm2] [--window-s 2.5] [--pairs 12]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.figures import Figure, report
from reasoner.config import Config, ServerKeys

WARM_UP_S = 8.0
PHASES = ("pause", "transfer", "probe", "recompute")
BACK = 0.9  # of the rate before: throughput is back
ANSWER_S = 0.005  # the server goes on before its answer to the probe has arrived


@dataclass(frozen=True)
class Loss:
    """Seconds of generation that one sync cost, by phase."""

    pause: float
    transfer: float
    probe: float
    recompute: float
    recomputed_tokens: int

    @property
    def total(self) -> float:
        return self.pause + self.transfer + self.probe + self.recompute


def stall(
    name: str, window_s: float, pairs: int, keep_kv: bool = False, max_num_seqs: int = 512
) -> tuple[list[Figure], dict[str, Any]]:
    """Figures and details for the model `name`; starts and ends a Ray of its own."""
    import ray
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.sync import _score_with
    from reasoner.model_source import resolve_model
    from reasoner.servers import server_config
    from reasoner.weight_sync import WeightSync
    from rollouts.server import start_server

    config = Config(model=name, max_staleness=2, server=ServerKeys(max_num_seqs=max_num_seqs))
    source = resolve_model(name)
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as logs:
            actor = start_server(
                server_config(config, source), name="bench-stall", log_dir=logs, timeout_s=600
            )
            torch.set_num_threads(1)
            model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
            prompts = _prompts(config, AutoTokenizer.from_pretrained(source.path))
            sync = WeightSync([actor], score=_score_with(model), keep_kv=keep_kv)
            sync.sync(model, 1)
            load = _Load(actor, config, prompts)
            figures, details = asyncio.run(_windows(load, sync, model, window_s, pairs))
            ray.kill(actor)
    finally:
        ray.shutdown()
    suffix = "" if name == "embedded" else f"_{name}"
    return [Figure(f"{f.name}{suffix}", f.value, f.unit, f.low, f.high) for f in figures], details


class _Load:
    """Groups of the task, as many as asynchronous training keeps in flight, each replaced when it is done."""

    def __init__(self, actor: Any, config: Config, prompts: Any) -> None:
        self.actor, self._config, self._prompts = actor, config, prompts

    async def keep_up(self) -> None:
        groups = (self._config.max_staleness + 1) * self._config.rollout.groups_per_step
        await asyncio.gather(*(self._one() for _ in range(groups)))

    async def _one(self) -> None:
        from reasoner.types import SamplingParams
        from rollouts.sampler import RaySampler

        rollout, sampler = self._config.rollout, RaySampler(self.actor)
        while True:
            prompt = next(self._prompts)
            await sampler.generate([prompt] * rollout.group_size, SamplingParams(rollout.max_tokens))


def _prompts(config: Config, tokenizer: Any) -> Any:
    from envs.tasks import load_tasks
    from rollouts.worker import RolloutWorker

    source = load_tasks(config.tasks.source, config.seed)
    template = "chat" if tokenizer.chat_template else "base"
    worker = RolloutWorker(tokenizer, source, template, None, 0)  # type: ignore[arg-type]
    return (worker.prompt_ids(task, task.prompt) for task in map(source.train, itertools.count()))


async def _windows(
    load: _Load, sync: Any, model: Any, window_s: float, pairs: int
) -> tuple[list[Figure], dict[str, Any]]:
    working = asyncio.create_task(load.keep_up())
    await asyncio.sleep(WARM_UP_S + window_s)
    rates, losses = [], []
    for index in range(2 * pairs):
        begun, before = time.perf_counter(), await load.actor.stats.remote()
        phases = None
        if index % 2:
            called = time.perf_counter()
            phases = (await asyncio.to_thread(sync.sync, model, 2 + index)).phases
        await asyncio.sleep(max(0.0, window_s - (time.perf_counter() - begun)))
        after = await load.actor.stats.remote()
        rates.append((after.tokens_generated - before.tokens_generated) / (time.perf_counter() - begun))
        if phases is not None:
            again = after.recomputed_tokens - before.recomputed_tokens
            losses.append(_loss(await load.actor.steps.remote(), called, window_s, phases, again))
        if working.done():
            working.result()  # why it ended
    working.cancel()
    return _summary(np.array(rates), losses, window_s)


def _loss(steps: np.ndarray, begun: float, window_s: float, phases: Any, recomputed_tokens: int) -> Loss:
    """The phases of a sync that began at `begun`, from the server's engine steps around it."""
    start, seconds, tokens = steps.T
    before = (start > begun - window_s) & (start + seconds < begun)
    rate = tokens[before].sum() / seconds[before].sum()
    asked = begun + phases["load"]
    paused = asked + phases["pause"]
    resumed = paused + phases["transfer"] + phases["probe"]
    under_way = float((start + seconds)[start < asked].max())  # until then it samples on
    after = np.flatnonzero(start > resumed - ANSWER_S)
    back = np.flatnonzero(tokens[after] / seconds[after] >= BACK * rate)
    slow = after[: back[0]] if len(back) else after
    return Loss(
        pause=paused - max(under_way, asked),
        transfer=phases["transfer"],
        probe=phases["probe"],
        recompute=float((seconds[slow] - tokens[slow] / rate).sum()),
        recomputed_tokens=recomputed_tokens,
    )


def _summary(rates: np.ndarray, losses: list[Loss], window_s: float) -> tuple[list[Figure], dict[str, Any]]:
    without, syncing = rates[::2], rates[1::2]
    shares = 1 - syncing / without
    share = float(1 - syncing.sum() / without.sum())
    median = {name: float(np.median([getattr(loss, name) for loss in losses])) for name in (*PHASES, "total")}
    tokens = float(np.median([loss.recomputed_tokens for loss in losses]))
    for name, seconds in median.items():
        print(
            f"  {name:10} {seconds * 1e3:7.1f} ms  {seconds / window_s:7.2%} of a window of {window_s:.3g} s"
        )
    figures = [
        Figure("sync_stall_share", share, "share", float(shares.min()), float(shares.max())),
        Figure("sync_lost_s", median["total"], "s", *_range([loss.total for loss in losses])),
    ]
    details = {
        "window_s": window_s,
        "tokens_per_s": without.tolist(),
        "tokens_per_s_with_sync": syncing.tolist(),
        "lost_by_phase_s": median,
        "recomputed_tokens": tokens,
        "tokens_lost": float(without.mean() * window_s * share),
    }
    return figures, details


def _range(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="embedded", help="as in `reasoner train`")
    parser.add_argument("--window-s", type=float, default=2.5, help="seconds of an asynchronous step")
    parser.add_argument("--pairs", type=int, default=12, help="windows with and without a sync")
    parser.add_argument("--keep-kv", action="store_true", help="do not recompute the KV cache")
    parser.add_argument("--max-num-seqs", type=int, default=512, help="sequences sampled at once")
    args = parser.parse_args()
    figures, details = stall(args.model, args.window_s, args.pairs, args.keep_kv, args.max_num_seqs)
    report(f"stall_{args.model}{'_keep' if args.keep_kv else ''}", figures, details)


if __name__ == "__main__":
    main()
