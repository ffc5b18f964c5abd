"""Our way to sample against vLLM's own: tokens/s through sampler, Ray and server actor, divided by
tokens/s of offline `LLM.generate` on the same prompts, parameters and engine settings.

Both engines run in a Ray actor each and take turns, so that a noisy machine disturbs both alike. The
model is stripped of its end token: every completion has exactly the asked number of tokens.

    python -m benchmarks.rollout [--model DIR] [--prompts 512] [--tokens 128 32] [--repeats 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.figures import Figure, ratio, report
from reasoner.models import embedded_path
from reasoner.types import SamplingParams
from rollouts.sampler import RaySampler
from rollouts.server import ServerConfig, start_server
from rollouts.vllm_core import engine_args, set_environment

ANSWER_S = 1800.0  # for one call of a server


class OfflineVLLM:
    """vLLM's `LLM` as its documentation shows it, with the engine settings of our server."""

    def __init__(self, config: ServerConfig) -> None:
        set_environment(config)
        import torch
        from vllm import LLM

        torch.set_num_threads(config.threads)
        args = engine_args(config)
        del args["weight_transfer_config"]
        self._llm = LLM(**args)

    def generate(self, prompts: list[list[int]], tokens: int) -> tuple[int, float]:
        """(tokens generated, seconds)."""
        from vllm import SamplingParams as VLLMSamplingParams

        params = VLLMSamplingParams(
            max_tokens=tokens, temperature=1.0, ignore_eos=True, detokenize=False, logprobs=0
        )
        started = time.perf_counter()
        outputs = self._llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return sum(len(o.outputs[0].token_ids) for o in outputs), seconds


async def _ours(sampler: RaySampler, prompts: list[list[int]], tokens: int, calls: int) -> float:
    """Tokens/s of `calls` concurrent calls that share the prompts."""
    params = SamplingParams(max_tokens=tokens)
    parts = [prompts[i::calls] for i in range(calls)]
    started = time.perf_counter()
    answers = await asyncio.gather(*(sampler.generate(part, params) for part in parts))
    seconds = time.perf_counter() - started
    generated = sum(len(c.token_ids) for answer in answers for c in answer)
    if generated != tokens * len(prompts):
        raise RuntimeError(f"expected {tokens * len(prompts)} tokens, got {generated}")
    return generated / seconds


def _theirs(offline: Any, prompts: list[list[int]], tokens: int) -> float:
    generated, seconds = ray.get(offline.generate.remote(prompts, tokens), timeout=ANSWER_S)
    if generated != tokens * len(prompts):
        raise RuntimeError(f"expected {tokens * len(prompts)} tokens, got {generated}")
    return generated / seconds


def run(
    model: str, *, prompts: int, tokens: list[int], repeats: int, calls: int, num_seqs: int, threads: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Interleaved pairs for every completion length; needs a running Ray."""
    with tempfile.TemporaryDirectory() as directory:
        endless = _without_end_token(model, Path(directory) / "model")
        vocab = json.loads((endless / "config.json").read_text())["vocab_size"]
        config = ServerConfig(
            model=str(endless), max_model_len=max(tokens) + 64, max_num_seqs=num_seqs, threads=threads
        )
        actor = start_server(config, name="bench-rollout", log_dir=directory, timeout_s=600)
        startup_s = ray.get(actor.stats.remote(), timeout=ANSWER_S).startup_s
        offline = ray.remote(OfflineVLLM).options(num_cpus=0).remote(config)
        rng = np.random.default_rng(0)
        batch = [rng.integers(2, vocab, 12).tolist() for _ in range(prompts)]
        sampler = RaySampler(actor)
        figures, details = [], {"server_startup_s": startup_s, "prompts": prompts, "max_num_seqs": num_seqs}
        for count in tokens:
            ours, theirs = _pairs(sampler, offline, batch, count, calls, repeats)
            suffix = "" if count == 128 else f"_{count}"
            figures.append(ratio(f"rollout_vs_vllm{suffix}", ours, theirs))
            details[f"tokens_per_s_{count}"] = {"ours": ours, "offline": theirs}
        ray.kill(actor)
        ray.kill(offline)
    return figures, details


def _pairs(
    sampler: RaySampler, offline: Any, batch: list[list[int]], tokens: int, calls: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Tokens/s of ours and of offline vLLM; the first round warms up. Which goes first alternates."""
    ours, theirs = [], []
    for repeat in range(repeats + 1):
        sides = [
            lambda: ours.append(asyncio.run(_ours(sampler, batch, tokens, calls))),
            lambda: theirs.append(_theirs(offline, batch, tokens)),
        ]
        for side in sides if repeat % 2 else reversed(sides):
            side()
    return ours[1:], theirs[1:]


def _without_end_token(model: str, target: Path) -> Path:
    shutil.copytree(model, target)
    for name in ("config.json", "generation_config.json"):
        path = target / name
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(embedded_path()))
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4, help="concurrent calls that share the prompts")
    parser.add_argument("--num-seqs", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    args = vars(parser.parse_args())
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    figures, details = run(args.pop("model"), **args)
    report("rollout", figures, details)


if __name__ == "__main__":
    main()
