"""Where the time of a learner update goes: matrix products, attention, elementwise operations, and Python.

The first three are shares of the time that torch's profiler finds inside operations, by their own time, in
one update on the rollouts of `benchmarks.learner_gemm`. `learner_python_share` is what is left of an update
when there is nothing to compute: CPU seconds of an update with as many layers, heads, rollouts, micro-
batches and (about) attention calls, but tiny matrices and rollouts, over those of the whole one. So it
counts Python, the dispatch of every operation and autograd's bookkeeping, and what little is computed. CPU
seconds, since on a busy machine a process also stands still.

    python -m benchmarks.learner_profile [--models embedded,smollm2] [--dtype float32] [--operations 20]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.figures import Figure, report
from benchmarks.learner_gemm import TOKENS, long_tailed_batch
from reasoner.errors import UsageError

#: Parts of the names of operations; the first kind that fits counts.
KINDS = {"attention": ("attention",), "products": ("mm",)}
SHORTER = 16  # the rollouts of the update that computes next to nothing
TINY_VOCABULARY = 64
UPDATES = 3


def kind_of(operation: str) -> str:
    """attention, products or elementwise: copies, norms, gates, softmax, the optimizer."""
    return next((kind for kind, parts in KINDS.items() if any(p in operation for p in parts)), "elementwise")


def shares(events: Any) -> dict[str, float]:
    """Of the time inside operations, by their own time."""
    found = dict.fromkeys([*KINDS, "elementwise"], 0.0)
    for event in events:
        if event.key.startswith("aten::"):
            found[kind_of(event.key.removeprefix("aten::"))] += event.self_cpu_time_total
    return {kind: time / sum(found.values()) for kind, time in found.items()}


def tiny_copy(model_path: Path, directory: str) -> Path:
    """A random model with the layers and heads of the one at `model_path`, and next to no parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_path)
    config.update({"hidden_size": 2 * config.num_attention_heads, "head_dim": 2, "intermediate_size": 8})
    config.update({"vocab_size": TINY_VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return Path(directory)


def cpu_seconds(learner: Any, batch: Any) -> float:
    """Median of some updates, after one that allocates."""
    seconds = []
    for _ in range(UPDATES + 1):
        started = time.process_time()
        learner.update(batch)
        seconds.append(time.process_time() - started)
    return float(np.median(seconds[1:]))


def python_share(model_path: Path, batch: Any, short: Any, settings: dict[str, Any]) -> tuple[float, Any]:
    """CPU seconds of an update on `short` with a tiny model over those on `batch` with the whole one."""
    from reasoner import packed
    from reasoner.learner import Learner, LearnerConfig

    config = LearnerConfig(**settings)
    whole = cpu_seconds(Learner(model_path, config), batch)
    budget = replace(config, micro_batch_tokens=config.micro_batch_tokens // SHORTER)
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(packed, "FREE_PADDING", packed.FREE_PADDING // SHORTER),
    ):
        empty = cpu_seconds(Learner(tiny_copy(model_path, directory), budget), short)
    return empty / whole, {"empty_cpu_s": empty, "cpu_s": whole}


def run(model: str, *, operations: int, settings: dict[str, Any]) -> tuple[list[Figure], dict[str, Any]]:
    from torch.profiler import ProfilerActivity, profile

    from reasoner.learner import Learner, LearnerConfig
    from reasoner.model_source import resolve_model

    source, tokens = resolve_model(model), TOKENS.get(model, 4096)
    batch = long_tailed_batch(tokens, source.vocab_size)
    short = long_tailed_batch(tokens, TINY_VOCABULARY, shorter=SHORTER)
    python, details = python_share(source.path, batch, short, settings)
    learner = Learner(source.path, LearnerConfig(**settings))
    learner.update(batch)  # the first one allocates
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        learner.update(batch)
    events = profiler.key_averages()
    if operations:
        print(events.table(sort_by="self_cpu_time_total", row_limit=operations, max_name_column_width=50))
    suffix = "" if model == "smollm2" else f"_{model}"
    found = {f"learner_{kind}_share{suffix}": share for kind, share in shares(events).items()}
    figures = [Figure(name, share, "share") for name, share in found.items()]
    figures.append(Figure(f"learner_python_share{suffix}", python, "share"))
    return figures, {**details, **settings, "rollouts": batch.num_rollouts, "tokens": batch.num_tokens}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="embedded,smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--operations", type=int, default=0, help="print so many of the most expensive ones")
    args = parser.parse_args()
    settings = {"threads": args.threads, "dtype": args.dtype, "lr": 1e-6}
    figures, details = [], {}
    for model in args.models.split(","):
        try:
            found, details[model] = run(model, operations=args.operations, settings=settings)
        except UsageError as error:
            print(f"{model}: left out: {error}")
            continue
        figures += found
    report("learner_profile", figures, details)


if __name__ == "__main__":
    main()
