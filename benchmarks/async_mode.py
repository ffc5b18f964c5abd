"""What asynchronous training gains, and how busy it keeps the machine: short real runs of the command line.

Three kinds of runs, in turn, `--repeats` times:
- `alone`: synchronous, one thread for the learner and one for the server. They take turns, so T_generate
  (rollout, verification) and T_learn (update) are each measured with one core to itself.
- `async`: the same threads, `max_staleness = 2`: both work at once.
- `sync`: synchronous, both cores for whoever's turn it is: two servers of one thread, two learner threads.

`async_vs_ideal` = max(T_generate, T_learn) / T_async: the speed-up over taking turns on single cores, divided
by the ideal one, (T_generate + T_learn) / max(T_generate, T_learn). `async_vs_sync` = T_sync / T_async.
`slower_side_busy_share`: the larger of the shares of T_async in which the learner, or the server's engine, is
at work. All T are means over steps after `WARM_UP`.

`sync_stall_share`: one server that samples all the time; windows as long as an asynchronous step, every other
one with a weight sync in it. 1 - tokens with / tokens without counts the pause, recomputing the KV cache and
the time until throughput is back.

    python -m benchmarks.async_mode [--steps 12] [--repeats 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, ratio, report

WARM_UP = 3  # steps left out
RUN_S = 3600.0  # for one run
STALENESS = 2
RUNS = {
    "alone": ["--learner.threads=1"],
    "async": ["--learner.threads=1", f"--max_staleness={STALENESS}"],
    "sync": ["--learner.threads=2", "--server.replicas=2"],
}


def steps_of(kind: str, steps: int, extra: list[str]) -> list[dict[str, Any]]:
    """The metrics lines, after the warm-up, of one run."""
    with tempfile.TemporaryDirectory() as directory:
        flags = [f"--runs_dir={directory}", "--name=r", f"--steps={steps + WARM_UP + 1}", "--eval.every=0"]
        cheap = ["--eval.problems=1", "--eval.samples=1", "--checkpoint.every=0"]
        command = [sys.executable, "-m", "reasoner.cli", "train", *flags, *cheap, *RUNS[kind], *extra]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
        if done.returncode != 0:
            raise RuntimeError(f"the run {kind} failed:\n{done.stdout}{done.stderr}")
        lines = (Path(directory) / "r" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][1 + WARM_UP : -1]  # the last step evaluates


def mean(lines: list[dict[str, Any]], *phases: str) -> float:
    return float(np.mean([sum(line["seconds"][phase] for phase in phases) for line in lines]))


def busy_shares(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Share of the run's time that the learner and the server were at work."""
    total = sum(line["seconds"]["total"] for line in lines)
    return {
        "learner": sum(line["update_seconds"] for line in lines if "update_seconds" in line) / total,
        "server": sum(line["sampler_busy_s"] for line in lines) / total,
    }


def runs(steps: int, repeats: int, extra: list[str]) -> tuple[list[Figure], dict[str, Any], float]:
    """Figures, details, and the seconds of an asynchronous step."""
    generate, learn, together, taking_turns, shares = [], [], [], [], []
    for _ in range(repeats):
        alone = steps_of("alone", steps, extra)
        generate.append(mean(alone, "rollout", "verify"))
        learn.append(mean(alone, "learn"))
        asynchronous = steps_of("async", steps, extra)
        together.append(mean(asynchronous, "total"))
        shares.append(busy_shares(asynchronous))
        taking_turns.append(mean(steps_of("sync", steps, extra), "total"))
    busy = [max(share.values()) for share in shares]
    figures = [
        ratio("async_vs_ideal", np.maximum(generate, learn).tolist(), together),
        ratio("async_vs_sync", taking_turns, together),
        Figure("slower_side_busy_share", float(np.median(busy)), "of time", min(busy), max(busy)),
    ]
    details = {
        "t_generate_s": generate,
        "t_learn_s": learn,
        "t_async_s": together,
        "t_sync_s": taking_turns,
        "busy_shares": shares,
        "steps": steps,
        "max_staleness": STALENESS,
    }
    return figures, details, float(np.median(together))


def stall(window_s: float, pairs: int) -> Figure:
    """`sync_stall_share` from windows of `window_s` seconds, without and with a sync in turn."""
    import ray
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.rollout import _without_end_token
    from benchmarks.sync import _score_with
    from reasoner.models import embedded_path
    from reasoner.types import SamplingParams
    from reasoner.weight_sync import WeightSync
    from rollouts.sampler import RaySampler
    from rollouts.server import ServerConfig, start_server

    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as directory:
        model_path = str(_without_end_token(str(embedded_path()), Path(directory) / "model"))
        config = ServerConfig(model=model_path, max_model_len=256, max_num_seqs=512)
        actor = start_server(config, name="bench-stall", log_dir=directory, timeout_s=600)
        torch.set_num_threads(1)
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        sync = WeightSync([actor], score=_score_with(model))
        sync.sync(model, 1)

        async def keep_busy() -> None:
            """As many groups as the server computes at once, each replaced when it is done."""

            async def one(first: int) -> None:
                length = first  # staggered, as the episodes of a run are
                while True:
                    await RaySampler(actor).generate([[5, 6, 7]] * 16, SamplingParams(max_tokens=length))
                    length = 128

            await asyncio.gather(*(one(4 + 4 * i) for i in range(32)))

        def tokens() -> int:
            return ray.get(actor.stats.remote()).tokens_generated

        async def windows() -> list[float]:
            load = asyncio.create_task(keep_busy())
            await asyncio.sleep(10)
            counts = []
            for index in range(2 * pairs):
                begun, before = time.perf_counter(), await asyncio.to_thread(tokens)
                if index % 2:
                    await asyncio.to_thread(sync.sync, model, 2 + index)
                await asyncio.sleep(max(0.0, window_s - (time.perf_counter() - begun)))
                after = await asyncio.to_thread(tokens)
                counts.append((after - before) / (time.perf_counter() - begun))
            load.cancel()
            return counts

        rates = np.array(asyncio.run(windows()))
        ray.kill(actor)
    ray.shutdown()
    shares = 1 - rates[1::2] / rates[::2]
    low, high = float(shares.min()), float(shares.max())
    return Figure("sync_stall_share", float(1 - rates[1::2].sum() / rates[::2].sum()), "of tokens", low, high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=10, help="windows with and without a sync")
    args, extra = parser.parse_known_args()  # the rest are configuration keys for the runs
    figures, details, step_s = runs(args.steps, args.repeats, extra)
    figures.append(stall(step_s, args.pairs))
    report("async_mode", figures, details | {"stall_window_s": step_s})


if __name__ == "__main__":
    main()
