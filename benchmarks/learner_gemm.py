"""How much of the machine's matrix-product rate a learner update reaches.

`learner_vs_gemm_peak` = (FLOPs of the update / its seconds) / (the best rate of one large product in the same
precision on the same threads, measured in between). The FLOPs are those of the model: three forwards' worth,
output head and attention included; what is computed twice to save memory (the logits) is not counted. The
rollouts are long-tailed, as chains of thought are: 10 to 512 tokens. With several `--threads` each is
measured; what is not the first one's is named so (`learner_vs_gemm_peak_2_threads`; 2 is the default of
`learner.threads`).

    python -m benchmarks.learner_gemm [--models embedded,smollm2] [--repeats 3] [--dtype float32]
                                      [--threads 1,2]
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.figures import Figure, report
from reasoner.errors import UsageError

TOKENS = {"embedded": 16384, "smollm2": 2048}  # of one update: seconds, not minutes
GEMM_SIZES = (1024, 2048, 3072)


def long_tailed_batch(tokens: int, vocabulary: int, seed: int = 0, *, shorter: int = 1) -> Any:
    """Rollouts of 10 to 512 tokens (log-normal, median 60), about `tokens` in all; the first 8 are prompt.
    With `shorter` each is that many times shorter."""
    from reasoner.types import TrainBatch

    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(np.clip(rng.lognormal(np.log(60), 1.0), 10, 512)))
    lengths = [max(n // shorter, 2) for n in lengths]
    total = sum(lengths)
    mask = np.concatenate([np.arange(n) >= max(8 // shorter, 1) for n in lengths])
    signs = np.repeat(rng.choice([-1.0, 1.0], len(lengths)), lengths)
    return TrainBatch(
        token_ids=rng.integers(0, vocabulary, total).astype(np.int32),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        action_mask=mask,
        behaviour_logprobs=np.where(mask, -np.log(vocabulary), 0).astype(np.float32),
        advantages=np.where(mask, signs, 0).astype(np.float32),
        loss_weight=(mask / mask.sum()).astype(np.float32),
        group=np.arange(len(lengths)) // 4,
    )


def gemm_rate(dtype: str) -> float:
    """FLOP/s of the best of a few large square products."""
    import torch

    best = 0.0
    for size in GEMM_SIZES:
        a = torch.randn(size, size, dtype=getattr(torch, dtype))
        b = torch.randn(size, size, dtype=getattr(torch, dtype))
        out = a @ b
        for _ in range(3):
            started = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def run(model: str, *, repeats: int, threads: int, dtype: Any) -> tuple[Figure, dict[str, Any]]:
    """Updates and products in turn."""
    from reasoner.learner import Learner, LearnerConfig
    from reasoner.model_source import resolve_model

    source = resolve_model(model)
    learner = Learner(source.path, LearnerConfig(threads=threads, dtype=dtype, lr=1e-6))
    batch = long_tailed_batch(TOKENS.get(model, 4096), source.vocab_size)
    learner.update(batch)  # the first one allocates
    rates, peaks, tokens = [], [], []
    for _ in range(repeats):
        metrics = learner.update(batch).metrics
        rates.append(metrics["flops"] / metrics["update_seconds"])
        tokens.append(metrics["tokens"] / metrics["update_seconds"])
        peaks.append(gemm_rate(dtype))
    shares = np.array(rates) / np.array(peaks)
    name = "learner_vs_gemm_peak" if model == "smollm2" else f"learner_vs_gemm_peak_{model}"
    figure = Figure(name, float(np.median(shares)), "ratio", float(shares.min()), float(shares.max()))
    details = {"flops_per_s": rates, "gemm_flops_per_s": peaks, "tokens_per_s": tokens, "dtype": dtype}
    return figure, {**details, "threads": threads, "rollouts": batch.num_rollouts}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="embedded,smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=_numbers, default=(1, 2))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    figures, details = [], {}
    for model, threads in itertools.product(args.models.split(","), args.threads):
        try:
            figure, measured = run(model, repeats=args.repeats, threads=threads, dtype=args.dtype)
        except UsageError as error:
            print(f"{model}: left out: {error}")
            continue
        apart = "" if threads == args.threads[0] else f"_{threads}_threads"
        figures.append(replace(figure, name=figure.name + apart))
        details[model + apart] = measured
    suffix = "" if args.dtype == "float32" else f"_{args.dtype}"
    report(f"learner_gemm{suffix}", figures, details)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
