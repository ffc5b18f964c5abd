"""Sampling of an evaluation against vLLM's own: tokens/s of `reasoner eval`'s whole path (episodes, stream,
every sample committed to disk, graded beside) divided by tokens/s of offline `LLM.generate` on the same
prompts, parameters and engine settings.

Both engines run in a Ray actor each and take turns. The model is stripped of its end token: every completion
has exactly the asked number of tokens.

    python -m benchmarks.evaluation [--problems 64] [--samples 16] [--tokens 64] [--repeats 5]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from benchmarks.figures import ratio, report
from benchmarks.rollout import OfflineVLLM, _theirs, _without_end_token
from envs.tasks import TaskSource, load_tasks
from reasoner.evaluation.collect import Collector, missing_work
from reasoner.evaluation.generate import IN_FLIGHT_PER_SLOT, LocalGenerator
from reasoner.evaluation.grade import Grader
from reasoner.evaluation.progress import Progress
from reasoner.evaluation.store import EvalStore
from reasoner.models import embedded_path
from reasoner.types import SamplingParams, Task
from rollouts.coalescing import CoalescingSampler
from rollouts.sampler import RaySampler
from rollouts.server import ServerConfig, start_server
from verifiers import VerifierPool


async def _ours(
    actor: Any,
    tokenizer: Any,
    source: TaskSource,
    tasks: list[Task],
    samples: int,
    tokens: int,
    num_seqs: int,
) -> float:
    """Tokens/s of one evaluation from its first request to its last verdict."""
    with tempfile.TemporaryDirectory() as directory, VerifierPool("math") as pool:
        with EvalStore(Path(directory), {"benchmark": True}) as store:
            store.add_tasks("held_out", tasks)
            grader = Grader(store, {("held_out", task.id): task for task in tasks}, pool, None)
            in_flight = IN_FLIGHT_PER_SLOT * num_seqs
            sampler = CoalescingSampler(RaySampler(actor))
            generator = LocalGenerator([sampler], tokenizer, source, "base", 512, in_flight, [])
            params, quiet = SamplingParams(tokens), Progress(quiet=True)
            work = list(missing_work(store, {"held_out": tasks}, samples, (), tokens))
            collector = Collector(store, generator, grader, params, quiet, 0)
            started = time.perf_counter()
            await collector.run(work)
            seconds = time.perf_counter() - started
    if collector.tokens_sampled != tokens * samples * len(tasks):
        raise RuntimeError(f"expected {tokens * samples * len(tasks)} tokens, got {collector.tokens_sampled}")
    return collector.tokens_sampled / seconds


def run(
    problems: int, samples: int, tokens: int, repeats: int, num_seqs: int
) -> tuple[list[float], list[float]]:
    """Tokens/s of ours and of offline vLLM in interleaved pairs; the first pair warms up."""
    from transformers import AutoTokenizer

    source = load_tasks("arithmetic")
    tasks = source.split("held_out", problems)
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        model = _without_end_token(str(embedded_path()), Path(directory) / "model")
        tokenizer = AutoTokenizer.from_pretrained(str(model))
        config = ServerConfig(model=str(model), max_model_len=512, max_num_seqs=num_seqs)
        actor = start_server(config, name="bench-eval", log_dir=directory, timeout_s=600)
        offline = ray.remote(OfflineVLLM).options(num_cpus=0).remote(config)
        prompts = [tokenizer.encode(source.base_template.format(prompt=t.prompt)) for t in tasks]
        batch = [prompt for prompt in prompts for _ in range(samples)]
        for repeat in range(repeats + 1):
            sides = [
                lambda: ours.append(
                    asyncio.run(_ours(actor, tokenizer, source, tasks, samples, tokens, num_seqs))
                ),
                lambda: theirs.append(_theirs(offline, batch, tokens)),
            ]
            for side in sides if repeat % 2 else reversed(sides):
                side()
        ray.kill(actor)
        ray.kill(offline)
    return ours[1:], theirs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-seqs", type=int, default=512)
    args = vars(parser.parse_args())
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ours, theirs = run(**args)
    details = {**args, "tokens_per_s": {"ours": ours, "offline": theirs}}
    report("evaluation", [ratio("eval_vs_vllm", ours, theirs)], details)


if __name__ == "__main__":
    main()
