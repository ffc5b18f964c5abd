"""How much slower sampling is beside a learner, whatever brings the two together: the ceiling of asynchronous
training on this machine.

One server of one thread under the load of `benchmarks.stall`, without any weight sync, and beside it a
process that does nothing but updates on one thread (the batch of `benchmarks.shared_prompts`). Every other
window that process is stopped (SIGSTOP). `sampling_beside_learner` = tokens/s while it runs over tokens/s
while it does not. With a core each and nothing shared between them it would be 1.

    python -m benchmarks.interference [--model RUN] [--window-s 5] [--pairs 8]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.figures import ratio, report
from benchmarks.shared_prompts import batch_of
from benchmarks.stall import WARM_UP_S, _Load, _prompts

MEAN_ANSWER = 30  # tokens, of the learner's batch


def learn_forever(model_path: str) -> None:
    """Updates of one thread until the process is killed; a line once the first is done."""
    from reasoner.learner import Learner, LearnerConfig

    learner, batch = Learner(model_path, LearnerConfig(lr=1e-9, threads=1)), batch_of(MEAN_ANSWER)
    learner.update(batch)
    print("ready", flush=True)
    while True:
        learner.update(batch)


async def windows(load: _Load, learner: int, window_s: float, pairs: int) -> dict[str, list[float]]:
    """Tokens/s of windows in which the process `learner` runs, and of those in which it is stopped."""
    working = asyncio.create_task(load.keep_up())
    await asyncio.sleep(WARM_UP_S)
    rates: dict[str, list[float]] = {"beside": [], "alone": []}
    for index in range(2 * pairs):
        beside = index % 2 == 0
        os.kill(learner, signal.SIGCONT if beside else signal.SIGSTOP)
        begun, before = time.perf_counter(), await load.actor.stats.remote()
        await asyncio.sleep(window_s)
        after = await load.actor.stats.remote()
        tokens = after.tokens_generated - before.tokens_generated
        rates["beside" if beside else "alone"].append(tokens / (time.perf_counter() - begun))
        if working.done():
            working.result()  # why it ended
    working.cancel()
    return rates


def run(name: str, window_s: float, pairs: int) -> dict[str, list[float]]:
    import ray
    from transformers import AutoTokenizer

    from reasoner.cluster import connected
    from reasoner.config import Config
    from reasoner.model_source import resolve_model
    from reasoner.servers import server_config
    from rollouts.server import start_server

    config, source = Config(model=name, max_staleness=2), resolve_model(name)
    command = [sys.executable, "-m", "benchmarks.interference", "--learn", str(source.path)]
    with connected(""), tempfile.TemporaryDirectory() as logs:
        actor = start_server(server_config(config, source), name="bench", log_dir=logs, timeout_s=600)
        load = _Load(actor, config, _prompts(config, AutoTokenizer.from_pretrained(source.path)))
        learner: Any
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as learner:
            try:
                if learner.stdout.readline().strip() != "ready":
                    raise RuntimeError("the learner did not start")
                return asyncio.run(windows(load, learner.pid, window_s, pairs))
            finally:
                learner.kill()
                ray.kill(actor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="embedded", help="as in `reasoner train`")
    parser.add_argument("--window-s", type=float, default=5.0)
    parser.add_argument("--pairs", type=int, default=8, help="windows with and without a learner")
    parser.add_argument("--learn", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.learn:
        learn_forever(args.learn)
    rates = run(args.model, args.window_s, args.pairs)
    figure = ratio("sampling_beside_learner", rates["beside"], rates["alone"])
    report("interference", [figure], {"tokens_per_s": rates, "window_s": args.window_s})


if __name__ == "__main__":
    main()
